// Dialogs whose content is Gradio components. The server shows and hides them.
let opener; // what had the focus when the dialog opened

const pressClose = (dialog) => dialog.querySelector("button.dialog-close")?.click();

// Marks the dialog for assistive technology, and moves the focus into it: to its last text box, or else
// to its button that closes it.
export const openDialog = (id) => {
  opener = document.activeElement;
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
  const box = [...dialog.querySelectorAll("textarea")].at(-1);
  (box || dialog.querySelector("button.dialog-close"))?.focus();
  if (box?.rows > 1) box.setSelectionRange(box.value.length, box.value.length);
  else box?.select();
};

// Returns the focus to what had it when the dialog opened, or else to the button with the id
// `next`, unless the dialog is still open.
export const closeDialog = (id, next) => {
  setTimeout(() => {
    if (document.getElementById(id)?.getClientRects().length) return;
    const usable = opener?.isConnected && !opener.disabled;
    (usable ? opener : document.getElementById(next))?.focus();
  }, 50);
};
