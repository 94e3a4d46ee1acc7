// The language and light switches of the bar.
const sure = element.querySelector("dialog"); // a frame of another site, as on Spaces, lets no confirm() through
for (const button of element.querySelectorAll("[data-language]")) {
  button.setAttribute("aria-pressed", String(button.dataset.language === personaLab.language));
  button.addEventListener("click", () => {
    const to = button.dataset.language;
    if (to === personaLab.language) return;
    if (!personaLab.losesByReload()) return personaLab.setLanguage(to);
    sure.onclose = () => sure.returnValue === to && personaLab.setLanguage(to);
    sure.returnValue = "";
    sure.querySelector("[data-go]").value = to;
    sure.showModal();
  });
}
element.querySelector("[data-light]").addEventListener("click", () => personaLab.toggleLight());
