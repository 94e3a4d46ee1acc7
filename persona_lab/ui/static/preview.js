// The prompt preview: follows the edited field, fits the window, and links spans to fields.
import { watch } from "./dom.js";
import { closeList } from "./keyboard.js";

// Each redraw replaces the paper and starts at its top: the scroll position is restored.
let edited = ""; // name of the field that has the focus
let scrolled = 0;
const showEdited = () => {
  const paper = document.querySelector("#prompt-preview .paper");
  if (!paper) return;
  paper.scrollTop = scrolled;
  const span = edited && paper.querySelector(`[data-field="${edited}"]`);
  if (!span) return;
  const [sheet, part] = [paper, span].map((element) => element.getBoundingClientRect());
  if (part.height > sheet.height) paper.scrollTop += part.bottom - sheet.bottom + 24;
  else if (part.top < sheet.top || part.bottom > sheet.bottom)
    paper.scrollTop += part.top - sheet.top - sheet.height / 3;
};
// The paper takes the height that the window leaves, and shows when it continues below.
const fitPaper = () => {
  const paper = document.querySelector("#prompt-preview .paper");
  if (!paper) return;
  const [side, sheet] = [document.getElementById("prompt-side"), paper].map((e) => e.getBoundingClientRect());
  const room = Math.floor(window.innerHeight - 16 - side.top - (side.height - sheet.height));
  document.documentElement.style.setProperty("--paper-height", `${Math.max(220, room)}px`);
  paper.classList.toggle("has-more", paper.scrollHeight - paper.scrollTop - paper.clientHeight > 8);
};
const markInvalid = () => {
  const wrong = document.querySelector("#saved [data-wrong]")?.dataset.wrong;
  for (const field of document.querySelectorAll("#editor-form [id^=field-]"))
    field.querySelector("textarea, input:not([type=radio])")?.setAttribute("aria-invalid", field.id === `field-${wrong}`);
};
const nameThread = () => {
  const name = document.querySelector("#persona-head h2")?.textContent || "";
  document.documentElement.style.setProperty("--persona", JSON.stringify(name));
};
export const forgetEdited = () => {
  edited = "";
};

export const watchPreview = () => {
  scrolled = 0;
  watch("saved", markInvalid);
  watch("persona-head", nameThread);
  watch("prompt-preview", () => {
    showEdited();
    fitPaper();
  });
  const side = document.getElementById("prompt-side");
  if (side) new ResizeObserver(fitPaper).observe(side);
};
addEventListener("resize", fitPaper);
document.addEventListener("scroll", (event) => {
  if (event.target.matches?.("#prompt-preview .paper")) scrolled = event.target.scrollTop;
  fitPaper();
}, true);
document.addEventListener("focusin", (event) => {
  const field = event.target.closest?.("#editor-form [id^=field-]");
  if (!field) return;
  edited = field.id.slice("field-".length);
  showEdited();
  // Gradio opens a list upwards from the lower half of the window; here it opens down while it fits.
  const room = window.innerHeight - field.getBoundingClientRect().bottom - 16;
  field.classList.toggle("opens-down", room >= 180);
  field.style.setProperty("--room", `${room}px`);
});

// A click on a coloured span of the prompt goes to the field that made it.
document.addEventListener("click", (event) => {
  const span = event.target.closest("[data-field]");
  if (!span) return;
  const block = document.getElementById(`field-${span.dataset.field}`);
  const reach = (tries) => {
    const field = document.getElementById(`field-${span.dataset.field}`);
    const input = field && field.querySelector("input:not([type=hidden]), textarea");
    if (!input?.offsetParent) return tries && setTimeout(() => reach(tries - 1), 60);
    field.scrollIntoView({ block: "center", behavior: "smooth" });
    input.focus({ preventScroll: true });
    if (input.matches("[role=combobox]")) setTimeout(() => closeList(input)); // it opens on focus
    field.classList.add("flash");
    setTimeout(() => field.classList.remove("flash"), 1300);
  };
  if (!block || !block.offsetParent) {
    const id = ["examples"].includes(span.dataset.field) ? "fold-examples" : "fold-voice";
    const opener = document.querySelector(`#${id} button.label-wrap`);
    if (opener && !opener.classList.contains("open")) opener.click();
  }
  reach(20);
});
