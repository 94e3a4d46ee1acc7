// Keeps the end of the conversation in view until the reader scrolls up.
// Their next message turns it on again.
import { watch } from "./dom.js";

let follows = true;
let lastTop = 0;
const bubbles = () => document.querySelector("#thread .bubble-wrap");
export const resumeFollowing = () => {
  follows = true;
};
const keepEnd = () => follows && bubbles()?.scrollTo(0, bubbles().scrollHeight);
const follow = () => {
  follows = true;
  keepEnd();
};
setInterval(() => watch("thread", keepEnd), 250);
document.addEventListener("scroll", ({ target }) => {
  if (target !== bubbles()) return;
  if (target.scrollHeight - target.scrollTop - target.clientHeight < 2) follows = true;
  else if (target.scrollTop < lastTop) follows = false;
  lastTop = target.scrollTop;
}, true);
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && event.target.closest?.("#chat-message")) follow();
});
document.addEventListener("click", (event) => {
  if (event.target.closest("#chats, #chat-send, #chat-again")) follow();
  if (event.target.closest("[role=tab]")) setTimeout(keepEnd, 50);
});

// An opened fold inside the conversation scrolls into view.
document.addEventListener("toggle", (event) => {
  if (event.target.open && event.target.closest("#thread")) event.target.scrollIntoView({ block: "nearest" });
}, true);
