// Changes of the form that the store has not confirmed. They survive a reload: the server takes
// them when the page opens again.
import { page } from "./connection.js";
import { editing } from "./dom.js";
import { keep } from "./storage.js";

// State of the form.
export const form = {
  touched: "", // "yes" once the visitor changed the form since it was opened
  typed: false, // a change hasn't left the page yet
  saving: false, // a change is on its way to the store
  sender: "", // the persona whose change was sent last
  arrived: false, // the first persona is shown
};
let handed = ""; // the persona whose unsaved fields the server got last
let sentFields = "";
let idle;

// Personas whose changes the store refused.
const refused = new Set();
const judge = (persona, mark) => {
  if (mark.includes('role="alert"')) refused.add(persona);
  else refused.delete(persona);
  return !refused.has(persona);
};
export const isRefused = (persona) => refused.has(persona);

const UNSAVED = "persona_lab.unsaved";

// Unsaved fields by persona; the persona that was touched last is the last key.
export const unsavedFields = () => JSON.parse(sessionStorage.getItem(UNSAVED) || "{}");

const addUnsaved = (persona, fields) => {
  const { [persona]: known, ...others } = unsavedFields();
  keep(UNSAVED, JSON.stringify({ ...others, [persona]: { ...known, ...fields } }));
  page.save = "saving";
};

// Ends "saving", and drops the fields of `saved`: the store has them.
export const settle = (saved) => {
  delete page.save;
  if (!saved) return;
  const { [saved]: _, ...others } = unsavedFields();
  if (Object.keys(others).length) keep(UNSAVED, JSON.stringify(others));
  else sessionStorage.removeItem(UNSAVED);
};

// The unsaved fields of a persona that is about to be opened, as the server takes them.
export const handOver = (persona) => {
  handed = persona;
  const fields = unsavedFields()[persona];
  return fields ? JSON.stringify({ persona, fields }) : "";
};

// Gradio reports no change of a field after a lost request: chips are read from the page.
addEventListener("pagehide", () => {
  if (!form.touched || !(page.save || page.server)) return;
  const chips = [...document.querySelectorAll("#editor-form [id^=field-]:has([role=combobox])")];
  const language = document.querySelector("#field-language input:checked")?.value;
  addUnsaved(editing(), Object.fromEntries([...chips.map((field) => [
    field.id.slice("field-".length),
    [...field.querySelectorAll(".token > span")].map((chip) => chip.textContent),
  ]), ...(language ? [["language", language]] : [])]));
});

for (const kind of ["input", "pointerdown", "keydown", "paste", "drop"])
  document.addEventListener(kind, (event) => {
    const block = event.isTrusted && event.target.closest?.("#editor-form");
    if (!block || block.hasAttribute("inert")) return;
    form.touched = "yes";
    if (kind !== "input") return;
    form.typed = true;
    const field = event.target.closest("[id^=field-]")?.id.slice("field-".length);
    if (!field || !event.target.matches("[data-testid=textbox]")) return;
    addUnsaved(editing(), { [field]: event.target.value });
    clearTimeout(idle); // the same text again is no change, and Gradio sends nothing
    const persona = editing();
    idle = setTimeout(() => form.typed && !form.saving && !page.server && settle(persona), 1500);
  }, true);

// Before a change is sent. `names` are the names of the values: a field's name, "#persona" for the
// id of the open persona, "#touched", or "" for others.
export const byHand = (values, names) => {
  form.typed = false;
  const persona = values[names.indexOf("#persona")];
  const named = names.map((name, i) => /^[^#]/.test(name) && [name, values[i]]).filter(Boolean);
  const fields = JSON.stringify(named);
  if (form.touched && fields !== sentFields) addUnsaved(persona, Object.fromEntries(JSON.parse(fields)));
  sentFields = fields;
  form.saving = Boolean(form.touched);
  form.sender = form.touched && persona;
  return values.map((value, i) => (names[i] === "#touched" ? form.touched : value));
};

// The server has answered. `mark` is its HTML about the saving: an alert where it failed.
export const kept = (mark) => {
  form.saving = false;
  if (!form.sender) return; // not a visitor's change, or another persona was opened meanwhile
  const copy = editing();
  const saved = judge(copy, mark);
  if (saved && copy !== form.sender) {
    // The demo became a copy: what was typed since belongs to the copy.
    const fields = unsavedFields()[form.sender];
    settle(form.sender);
    if (fields) addUnsaved(copy, fields);
    form.sender = copy;
  }
  if (!form.typed) settle(saved && copy);
};

// The same after a persona was opened with the unsaved fields of the browser.
export const regained = (mark) => {
  const saved = judge(handed, mark);
  if (!form.typed && !form.saving) settle(saved && handed); // else the visitor has typed on
};
