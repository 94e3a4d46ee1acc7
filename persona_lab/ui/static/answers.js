// Under answers: copy buttons, the address of this page in examples, and the waiting time.
import { address } from "./address.js";

const copyText = async (text) => {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Over plain HTTP from another machine navigator.clipboard is missing.
  const box = document.body.appendChild(document.createElement("textarea"));
  box.value = text;
  box.select();
  document.execCommand("copy");
  box.remove();
};
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  await copyText(button.dataset.copy);
  button.classList.add("copied");
  setTimeout(() => button.classList.remove("copied"), 1200);
});

// Examples for programs show the address of this page.
setInterval(() => {
  for (const place of document.querySelectorAll("[data-origin]:empty"))
    place.textContent = place.dataset.origin === "ws" ? address.replace(/^http/, "ws") : address;
}, 500);

// Shows for how long an answer has been waited for.
const since = new WeakMap();
setInterval(() => {
  for (const place of document.querySelectorAll("#tried, .contestant, #thread")) {
    const waiting = place.querySelector(".waiting");
    if (!waiting) {
      since.delete(place);
      place.style.removeProperty("--waited");
      continue;
    }
    if (!since.has(place)) since.set(place, performance.now());
    const seconds = Math.floor((performance.now() - since.get(place)) / 1000);
    place.style.setProperty("--waited", seconds ? `"${seconds}${waiting.dataset.unit}"` : '""');
  }
}, 250);
