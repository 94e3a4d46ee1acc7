// Buttons under answers that open the dialog of examples.
let pressed; // the button that was pressed last

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-question]");
  if (!button) return;
  pressed = button;
  document.getElementById("example-open")?.click();
});

export const pressedExample = () => [pressed?.dataset.question ?? "", pressed?.dataset.answer ?? ""];
