// The note under a field: how much of its limit is used, and why the form wasn't saved.
import { watch } from "./dom.js";

const NEAR = 0.9; // the share of a limit from which the count is shown
const noteOf = (field) => {
  const known = field.querySelector(":scope > .field-note");
  if (known) return known;
  const note = document.createElement("p");
  note.className = "field-note";
  note.setAttribute("role", "status");
  return field.appendChild(note);
};
const limits = () => JSON.parse(document.querySelector("#limits [data-limits]")?.dataset.limits || "{}");
const showNotes = () => {
  const refused = document.querySelector("#saved [data-wrong]");
  for (const [name, limit] of Object.entries(limits())) {
    const field = document.getElementById(`field-${name}`);
    if (!field) continue;
    const used = limit ? [...(field.querySelector("textarea")?.value || "")].length : 0;
    const wrong = refused?.dataset.wrong === name;
    const count = limit && used >= NEAR * limit ? `${used.toLocaleString("en")} / ${limit.toLocaleString("en")}` : "";
    const text = [wrong && refused.textContent, count].filter(Boolean).join(" ");
    const note = text || field.querySelector(":scope > .field-note") ? noteOf(field) : undefined;
    if (note && note.textContent !== text) note.textContent = text;
    note?.classList.toggle("over", wrong || (limit > 0 && used > limit));
  }
};
document.addEventListener("input", (event) => {
  if (event.target.closest?.("#editor-form")) showNotes();
}, true);
setInterval(() => watch("saved", showNotes), 250);
