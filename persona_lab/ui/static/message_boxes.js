// Text in the message boxes: unsent text survives a reload, sent text is removed.
import { inputOf } from "./dom.js";
import { form } from "./draft.js";
import { isComposing } from "./keyboard.js";
import { keep } from "./storage.js";

const boxes = ["chat-message", "compare-message", "try-message"];
const restored = new Set();
const restore = () => {
  for (const id of boxes) {
    const input = inputOf(id);
    const suggested = id === "try-message"; // its suggestion comes with the persona
    if (!input || restored.has(id) || (suggested && !form.arrived)) continue;
    restored.add(id);
    const text = sessionStorage.getItem(`persona_lab.unsent.${id}`);
    if (text && (suggested || !input.value)) {
      input.value = text;
      input.dispatchEvent(new Event("input", { bubbles: true }));
    }
  }
};
document.addEventListener("input", (event) => {
  const box = event.target.closest && boxes.find((id) => event.target.closest(`#${id}`));
  if (!box || !event.isTrusted) return; // a suggestion or a restored text
  restored.add(box); // the visitor typed before the text was restored
  keep(`persona_lab.unsent.${box}`, event.target.value);
});
setInterval(() => {
  restore();
  for (const id of boxes) {
    const input = inputOf(id);
    if (input && restored.has(id) && !input.value) sessionStorage.removeItem(`persona_lab.unsent.${id}`);
  }
}, 500);

// Removes sent text from the chat's box, and leaves what was typed after it. A composition of an
// input method isn't interrupted. Gradio's own value of the box is behind what is typed.
export const taken = (text) => {
  const input = inputOf("chat-message");
  const drop = () => {
    if (!input.value.startsWith(text)) return;
    input.value = input.value.slice(text.length);
    input.dispatchEvent(new Event("input", { bubbles: true }));
  };
  if (text && isComposing()) input.addEventListener("compositionend", () => setTimeout(drop), { once: true });
  else if (text) drop();
  return "";
};
