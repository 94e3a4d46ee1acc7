// Lookups and observers that several modules share.

export const inputOf = (id) => document.querySelector(`#${id} textarea, #${id} input`);

// The id of the persona in the form.
export const editing = () => document.querySelector("#editing textarea, #editing input")?.value;

const watched = new Map();

// Calls `notify` now and at each change inside the element. Calls it once for a change, even if it is passed again.
export const watch = (id, notify) => {
  const element = document.getElementById(id);
  if (!element) return;
  const notified = watched.get(element) || new Set();
  if (notified.has(notify)) return;
  watched.set(element, notified.add(notify));
  new MutationObserver(notify).observe(element, { childList: true, subtree: true });
  notify();
};
