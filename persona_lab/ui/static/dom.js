// Lookups and observers that several modules share.

export const inputOf = (id) => document.querySelector(`#${id} textarea, #${id} input`);

// The id of the persona in the form.
export const editing = () => document.querySelector("#editing textarea, #editing input")?.value;

const watched = new Set();

// Calls `notify` now and at each change inside the element. Watches an element once.
export const watch = (id, notify) => {
  const element = document.getElementById(id);
  if (!element || watched.has(element)) return;
  watched.add(element);
  new MutationObserver(notify).observe(element, { childList: true, subtree: true });
  notify();
};
