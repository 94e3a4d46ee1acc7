// Reopens after a reload the tab that was open.
import { keep } from "./storage.js";

const TAB = "persona_lab.tab";
const tabs = () => [...document.querySelectorAll("#tabs [role=tab]")];
document.addEventListener("click", (event) => {
  const at = tabs().indexOf(event.target.closest("[role=tab]"));
  if (at > 0) keep(TAB, at);
  else if (at === 0) sessionStorage.removeItem(TAB);
});
const reopenTab = () => {
  if (document.getElementById("editor-form")) tabs()[sessionStorage.getItem(TAB)]?.click();
  else requestAnimationFrame(reopenTab);
};
if (sessionStorage.getItem(TAB)) reopenTab();
