// The persona's suggested messages: chips that fill a message box. The visitor's own text stays.
import { inputOf, watch } from "./dom.js";

const offered = new Set(); // texts that aren't the visitor's own
const fill = (input, text) => {
  input.value = text;
  input.dispatchEvent(new Event("input", { bubbles: true }));
};
const offer = () => {
  const chips = document.querySelector("#try-suggestions .chips");
  const input = inputOf("try-message");
  if (!chips || !input) return;
  const texts = [...chips.querySelectorAll("[data-suggest]")].map((chip) => chip.dataset.suggest);
  const own = input.value && !offered.has(input.value);
  for (const text of texts) offered.add(text);
  if (!own && texts.length) fill(input, texts[0]);
};
// A tab is drawn when it is first opened.
setInterval(() => {
  watch("try-suggestions", offer);
  const chips = document.querySelector("#try-suggestions .chips")?.innerHTML;
  for (const place of document.querySelectorAll("#chat-suggestions .chips"))
    if (chips && place.innerHTML !== chips) place.innerHTML = chips;
}, 250);

document.addEventListener("click", (event) => {
  const chip = event.target.closest("[data-suggest]");
  if (!chip) return;
  const input = inputOf(chip.parentElement.dataset.fills);
  fill(input, chip.dataset.suggest);
  input.focus();
});
