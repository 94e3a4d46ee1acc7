// Dialogs whose content is Gradio components. The server shows and hides them.
const pressClose = (dialog) => dialog.querySelector("button.dialog-close")?.click();

// Marks the dialog for assistive technology, and moves the focus into it: to its text box, or else
// to its button that closes it.
export const openDialog = (id) => {
  const dialog = document.getElementById(id);
  if (!dialog) return;
  const title = dialog.querySelector("h3");
  if (title) title.id = `${id}-title`;
  dialog.setAttribute("role", "dialog");
  dialog.setAttribute("aria-modal", "true");
  dialog.setAttribute("aria-labelledby", `${id}-title`);
  dialog.onkeydown = (event) => {
    if (event.key === "Escape" && !event.isComposing) {
      event.preventDefault();
      pressClose(dialog);
    } else if (event.key === "Tab") {
      const stops = [...dialog.querySelectorAll("input, textarea, button, summary, a[href]")].filter(
        (stop) => !stop.disabled && stop.offsetParent,
      );
      const edge = event.shiftKey ? stops[0] : stops.at(-1);
      if (document.activeElement === edge) {
        event.preventDefault();
        (event.shiftKey ? stops.at(-1) : stops[0])?.focus();
      }
    }
  };
  const box = dialog.querySelector("textarea");
  (box || dialog.querySelector("button.dialog-close"))?.focus();
  box?.select();
};

// Returns the focus to the button that opened the dialog, unless the dialog is still open.
export const closeDialog = (id, opener) => {
  setTimeout(() => {
    const dialog = document.getElementById(id);
    if (!dialog?.offsetParent && !dialog?.getClientRects().length) document.getElementById(opener)?.focus();
  }, 50);
};
