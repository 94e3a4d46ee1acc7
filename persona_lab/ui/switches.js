// The language and light switches of the bar.
for (const button of element.querySelectorAll("[data-language]")) {
  button.setAttribute("aria-pressed", String(button.dataset.language === personaLab.language));
  button.addEventListener("click", () => personaLab.setLanguage(button.dataset.language));
}
element.querySelector("[data-light]").addEventListener("click", () => personaLab.toggleLight());
