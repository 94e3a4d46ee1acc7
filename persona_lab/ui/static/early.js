// Sets the language and the color scheme before Gradio renders, so that nothing flickers.
import { cookies } from "./storage.js";

const cookie = cookies().match(/(?:^|; )persona_lab_language=(ja|en)/);
export const language = cookie ? cookie[1] : (navigator.language || "ja").toLowerCase().startsWith("ja") ? "ja" : "en";
for (const [name, value] of [["language", language], ["languages", [language]]])
  Object.defineProperty(navigator, name, { get: () => value, configurable: true });
const root = document.documentElement; // it is null in the document once the page is left
const keepLanguage = () => {
  if (root.lang !== language) root.lang = language;
};
keepLanguage();
new MutationObserver(keepLanguage).observe(root, { attributeFilter: ["lang"] });

const light = localStorage.getItem("persona_lab.light");
const applyLight = () => light && document.body.classList.toggle("dark", light === "dark");
document.addEventListener("DOMContentLoaded", () => {
  applyLight();
  setTimeout(applyLight, 300);
});
