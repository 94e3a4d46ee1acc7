// What Gradio leaves out of its boxes: their height after a resize, and the names of chips' buttons.

// Gradio fits a text box to its text at an input only.
let resized;
let width = window.innerWidth;
addEventListener("resize", () => {
  if (window.innerWidth === width) return; // the keyboard of a phone
  width = window.innerWidth;
  clearTimeout(resized);
  resized = setTimeout(() => {
    for (const box of document.querySelectorAll("textarea"))
      if (box !== document.activeElement) box.dispatchEvent(new Event("input", { bubbles: true }));
  }, 200);
});

// Gradio names these buttons by number ("Remove 15") and not by their word.
setInterval(() => {
  for (const button of document.querySelectorAll("#editor-form .token [title]")) {
    const word = button.closest(".token").querySelector("span")?.textContent;
    const name = `${button.title.replace(/\s*\d+$/, "")} ${word}`;
    if (word && button.getAttribute("aria-label") !== name) button.setAttribute("aria-label", name);
  }
}, 500);
