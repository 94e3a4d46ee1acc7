// What Gradio leaves out of its boxes: their height after a resize, and the names of chips' buttons,
// and the mark of an answer that is older than the form.
import { page } from "./connection.js";
import { watch } from "./dom.js";

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

// The trial's answer is marked once the persona that gave it has changed.
for (const kind of ["input", "click"])
  document.addEventListener(kind, (event) => {
    const changes = kind === "input" || event.target.closest?.(".token, #persona-revert, #persona-redo");
    if (!event.isTrusted || !changes || !event.target.closest?.("#editor-form")) return;
    if (document.querySelector("#tried .answer")) page.tried = "older";
  }, true);
setInterval(() => {
  watch("tried", () => {
    if (!document.querySelector("#tried .answer") || document.querySelector("#tried .waiting")) delete page.tried;
  });
}, 250);

// Gradio names these buttons by number ("Remove 15") and not by their word.
setInterval(() => {
  for (const button of document.querySelectorAll("#editor-form .token [title]")) {
    const word = button.closest(".token").querySelector("span")?.textContent;
    const name = `${button.title.replace(/\s*\d+$/, "")} ${word}`;
    if (word && button.getAttribute("aria-label") !== name) button.setAttribute("aria-label", name);
  }
}, 500);
