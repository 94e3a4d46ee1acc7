// What Gradio's events call (`js=` in Python), as window.personaLab.
import { closeDialog, openDialog } from "./dialogs.js";
import { byHand, handOver, kept, regained, unsavedFields } from "./draft.js";
import { language } from "./early.js";
import { pressedExample } from "./examples.js";
import { chosen, opened, opening, reopening } from "./form_lock.js";
import { taken } from "./message_boxes.js";
import { keep } from "./storage.js";

const COLUMNS = "persona_lab.columns";

window.personaLab = {
  language,
  chosen,
  opening,
  reopening,
  opened,
  byHand,
  kept,
  regained,
  taken,
  openDialog,
  pressedExample,
  closeDialog,
  // An API key that was entered and the answers of a comparison exist in this page only.
  losesByReload: () =>
    Boolean(document.querySelector("#connect-keys .own")) ||
    [...document.querySelectorAll(".contestant .answer")].some((answer) => answer.textContent.trim()),
  setLanguage(to) {
    const secure = location.protocol === "https:" ? "; SameSite=None; Secure; Partitioned" : "; SameSite=Lax";
    document.cookie = `persona_lab_language=${to}; path=/; max-age=31536000${secure}`;
    location.reload();
  },
  toggleLight() {
    const dark = document.body.classList.toggle("dark");
    keep("persona_lab.light", dark ? "dark" : "light", localStorage);
  },
  zone: () => Intl.DateTimeFormat().resolvedOptions().timeZone || "",
  // Saves `text` as a file. It is made here: the server stores and serves no files.
  saveSheet(text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
    link.download = `persona-lab-${new Date().toLocaleDateString("sv")}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    return "";
  },
  remember(name, value) {
    if (value) keep(`persona_lab.${name}`, value, localStorage);
  },
  // The columns of a comparison: how many, and the model and persona of each.
  columns(values) {
    keep(COLUMNS, JSON.stringify(values));
  },
  // What to open on arrival. A persona with unsaved changes in this tab comes first.
  last() {
    const [persona, model] = ["persona", "model"].map(
      (name) => localStorage.getItem(`persona_lab.${name}`) || "",
    );
    const first = Object.keys(unsavedFields()).at(-1) || persona;
    return [first, model, handOver(first), sessionStorage.getItem(COLUMNS) || ""];
  },
};
