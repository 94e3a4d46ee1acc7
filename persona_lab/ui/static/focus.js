// Moves the focus on when the focused button disappears.
import { inputOf } from "./dom.js";

// Element id → ids that get the focus after it, the first that can take it.
export const NEXT = {
  "chat-delete": ["chat-undo", "chat-message"],
  "persona-delete": ["persona-restore"],
  "persona-restore": ["field-name"],
  "persona-revert": ["persona-revert", "persona-redo"],
  "persona-redo": ["persona-redo", "persona-revert"],
  "token-revoke": ["token-list", "token-name"],
};
// By pattern: key-openai-forget → key-openai, column-1-remove → compare-add, chat-stop → chat-message.
const nextOf = (id) => NEXT[id] || (
  id.startsWith("column-") ? [id.endsWith("-remove") ? "compare-add" : "compare-message"]
  : [id.replace(/-forget$/, ""), id.replace(/-\w+$/, "-message")]
);
let focusedId = ""; // of the element that had the focus last
let checksWithout = 0; // consecutive checks that found no focus
let finger = false; // on a touch screen the focus would open the keyboard
document.addEventListener("focusin", (event) => { focusedId = event.target.closest("[id]")?.id || ""; });
document.addEventListener("keydown", () => { finger = false; }, true);
document.addEventListener("pointerdown", (event) => {
  finger = event.pointerType === "touch";
  focusedId = ""; // a press on an element without focus leaves the old one
}, true);
setInterval(() => {
  checksWithout = focusedId && !finger && document.hasFocus() && document.activeElement === document.body ? checksWithout + 1 : 0;
  if (checksWithout < 2) return; // the next element may not be rendered yet
  for (const id of nextOf(focusedId)) {
    (inputOf(id) || document.getElementById(id))?.focus();
    if (document.activeElement !== document.body) return;
  }
}, 100);
