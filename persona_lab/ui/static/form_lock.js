// Locks the form while another persona is being opened.
// 
// Gradio fills a form field by field, and each field reports its change at once. Until all are
// filled the form is a mixture of two personas, and none of that may be saved. What was typed just
// before is saved first. If that made a copy of a demo, the copy is meant from then on.
import { resumeFollowing } from "./chat_scroll.js";
import { page } from "./connection.js";
import { editing, inputOf } from "./dom.js";
import { form, handOver, isRefused, settle } from "./draft.js";
import { NEXT } from "./focus.js";
import { forgetEdited, watchPreview } from "./preview.js";

let unlocking; // timer that unlocks the form
let requested = ""; // the persona that was chosen and isn't open yet
let choice = ""; // its id and the time of the choice
let focused; // what had the focus when the form was locked
let patience; // timer after which the page shows that it is opening a persona

const lock = (locked) => {
  clearTimeout(patience);
  if (locked) patience = setTimeout(() => { page.opening = "yes"; }, 500);
  else delete page.opening;
  const block = document.getElementById("editor-form");
  const active = document.activeElement;
  if (locked && block?.contains(active) && !NEXT[active.id]) focused = active;
  block?.toggleAttribute("inert", locked);
  if (!locked && document.activeElement === document.body) focused?.focus({ preventScroll: true });
  if (!locked) focused = undefined;
};

const lockForOpening = () => {
  lock(true);
  clearTimeout(unlocking);
  unlocking = setTimeout(() => lock(false), 10000);
};

// A chooser reports a choice twice, and also when it is only left: a real choice gets a new value.
export const chosen = (persona) => {
  if (persona && persona !== (requested || editing())) {
    choice = `${(requested = persona)} ${Date.now()}`;
    lockForOpening();
  }
  return choice;
};

export const opening = async (values) => {
  lockForOpening();
  const before = editing();
  for (let calm = 0, tries = 0; calm < 3 && tries < 100; tries++) {
    await new Promise((resolve) => setTimeout(resolve, 30));
    calm = form.saving || (form.typed && tries < 20) ? 0 : calm + 1;
  }
  const after = editing();
  form.sender = form.touched = "";
  form.typed = false;
  forgetEdited();
  // What couldn't be saved waits until this persona is opened again.
  if (form.arrived && !page.server) settle(!isRefused(after) && after);
  return values.map((value) => (before && value === before ? after : value));
};

// The same; the last value becomes the unsaved fields of the persona that comes first.
export const reopening = async (values) => {
  const [persona, ...others] = await opening(values);
  return [persona, ...others.slice(0, -1), handOver(persona)];
};

export const opened = (field) => {
  requested = "";
  resumeFollowing();
  if (!form.arrived && window.innerWidth <= 760) {
    // On a phone the prompt starts folded under the editor.
    document.querySelector("#prompt-fold button.label-wrap.open")?.click();
  }
  form.arrived = true;
  page.arrived = "yes";
  watchPreview();
  clearTimeout(unlocking);
  unlocking = setTimeout(() => {
    lock(false);
    const input = field && inputOf(`field-${field}`);
    input?.focus();
    input?.select();
  }, 150);
};
