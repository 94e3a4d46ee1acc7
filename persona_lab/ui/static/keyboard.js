// Keys in choosers and radio groups, and input methods (IME).

let composing = false;
for (const kind of ["compositionstart", "compositionend"])
  document.addEventListener(kind, () => { composing = kind === "compositionstart"; }, true);

export const isComposing = () => composing;

// A chooser selects its text on focus. After a choice with Enter it keeps the focus.
const chooser = (target) => target.matches?.("#who [role=combobox], #model [role=combobox], .choosers [role=combobox]");
document.addEventListener("focusin", (event) => {
  if (chooser(event.target)) setTimeout(() => event.target.select());
});
const press = (input, key) => input.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
export const closeList = (input) => press(input, "Escape");
document.addEventListener("keydown", (event) => {
  const input = event.target;
  if (!event.isTrusted || !input.matches?.("[role=combobox]")) return;
  if (event.key === "Tab") {
    event.stopPropagation(); // else Gradio reopens the list after the focus has left
    // A scrollable list would be a tab stop that disappears when it is reached.
    for (const list of input.closest(".wrap").querySelectorAll(".options, [role=listbox]")) list.tabIndex = -1;
  }
  if (event.key !== "Enter" || !chooser(input)) return;
  setTimeout(() => {
    if (document.activeElement !== document.body) return;
    input.focus({ preventScroll: true });
    closeList(input);
  });
}, true);
// A click reopens a list that was closed with Escape, although the chooser has the focus.
document.addEventListener("pointerdown", (event) => {
  const input = event.target;
  if (!input.matches?.("[role=combobox]") || document.activeElement !== input) return;
  if (input.getAttribute("aria-expanded") === "false") setTimeout(() => press(input, "ArrowDown"));
});

// Gradio makes each radio button a group of its own, so arrow keys need this.
document.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!step || !event.target.matches?.("fieldset input[type=radio]")) return;
  const radios = [...event.target.closest("fieldset").querySelectorAll("input[type=radio]")];
  const next = radios.at((radios.indexOf(event.target) + step) % radios.length);
  event.preventDefault();
  next.focus();
  next.click();
});

// Enter that ends a composition (Japanese, Chinese, Korean input) must not reach Gradio's choosers:
// they would add the reading as a word.
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.isComposing || event.keyCode === 229)) event.stopPropagation();
}, true);
