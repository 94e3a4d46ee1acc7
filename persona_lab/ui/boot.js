// Runs before Gradio: settles the language and the light, so that nothing flickers.
(() => {
  const kept = document.cookie.match(/(?:^|; )persona_lab_language=(ja|en)/);
  const language = kept ? kept[1] : (navigator.language || "ja").toLowerCase().startsWith("ja") ? "ja" : "en";
  for (const [name, value] of [["language", language], ["languages", [language]]])
    Object.defineProperty(navigator, name, { get: () => value, configurable: true });
  const keepLanguage = () => {
    if (document.documentElement.lang !== language) document.documentElement.lang = language;
  };
  keepLanguage();
  new MutationObserver(keepLanguage).observe(document.documentElement, { attributeFilter: ["lang"] });

  const light = localStorage.getItem("persona_lab.light");
  const applyLight = () => light && document.body.classList.toggle("dark", light === "dark");
  document.addEventListener("DOMContentLoaded", () => {
    applyLight();
    setTimeout(applyLight, 300);
  });

  let touched = ""; // a hand has changed the form since it was opened
  let typed = false; // … and that change hasn't left the page yet
  let saving = false; // … or is on its way to the store
  let arrived = false;
  const editing = () => document.querySelector("#editing textarea, #editing input")?.value;
  let reopening;
  const closeForm = (closed) => document.getElementById("editor-form")?.toggleAttribute("inert", closed);
  for (const kind of ["input", "pointerdown", "keydown", "paste", "drop"])
    document.addEventListener(kind, (event) => {
      const form = event.isTrusted && event.target.closest?.("#editor-form");
      if (!form || form.hasAttribute("inert")) return;
      touched = "yes";
      if (kind === "input") typed = true;
    }, true);

  window.personaLab = {
    language,
    setLanguage(to) {
      const secure = location.protocol === "https:" ? "; SameSite=None; Secure; Partitioned" : "; SameSite=Lax";
      document.cookie = `persona_lab_language=${to}; path=/; max-age=31536000${secure}`;
      location.reload();
    },
    toggleLight() {
      const dark = document.body.classList.toggle("dark");
      localStorage.setItem("persona_lab.light", dark ? "dark" : "light");
    },
    // Gradio fills a form field by field, and each field tells its change at once. While another
    // persona is being opened the form is a mixture of two: nothing of that is the visitor's
    // work, and none of it may be kept. So the form is closed until it is whole, and only what
    // a hand has touched since is saved.
    // What was typed just before is saved first; a demo that it made a copy of is that copy now.
    async opening(values) {
      closeForm(true);
      clearTimeout(reopening);
      reopening = setTimeout(() => closeForm(false), 10000);
      const before = editing();
      for (let calm = 0, tries = 0; calm < 3 && tries < 100; tries++) {
        await new Promise((resolve) => setTimeout(resolve, 30));
        calm = saving || (typed && tries < 20) ? 0 : calm + 1;
      }
      touched = "";
      typed = false;
      const after = editing();
      return values.map((value) => (before && value === before ? after : value));
    },
    opened() {
      if (!arrived && window.innerWidth <= 760) {
        // On a phone the prompt waits folded under the editor.
        document.querySelector("#prompt-fold button.label-wrap.open")?.click();
      }
      arrived = true;
      clearTimeout(reopening);
      reopening = setTimeout(() => closeForm(false), 150);
    },
    byHand(values) {
      typed = false;
      saving = Boolean(touched);
      return [...values.slice(0, -1), touched];
    },
    kept() {
      saving = false;
    },
    remember(name, value) {
      if (value) localStorage.setItem(`persona_lab.${name}`, value);
    },
    last: () => ["persona", "model"].map((name) => localStorage.getItem(`persona_lab.${name}`) || ""),
  };

  // A touch on a coloured span of the prompt leads to the field that it came from.
  document.addEventListener("click", (event) => {
    const span = event.target.closest("[data-field]");
    if (!span) return;
    const block = document.getElementById(`field-${span.dataset.field}`);
    const reach = (tries) => {
      const field = document.getElementById(`field-${span.dataset.field}`);
      const input = field && field.querySelector("input:not([type=hidden]), textarea");
      if (!input) return tries && setTimeout(() => reach(tries - 1), 60);
      field.scrollIntoView({ block: "center", behavior: "smooth" });
      input.focus({ preventScroll: true });
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

  // Enter that ends a composition (Japanese, Chinese, Korean input) is no Enter. Gradio's choosers
  // would take the reading for a word.
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.isComposing || event.keyCode === 229)) event.stopPropagation();
  }, true);

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    await navigator.clipboard.writeText(button.dataset.copy);
    button.classList.add("copied");
    setTimeout(() => button.classList.remove("copied"), 1200);
  });

  // What stands unsent in a message box survives a reload.
  const boxes = ["chat-message", "compare-message", "try-message"];
  const inputOf = (id) => document.querySelector(`#${id} textarea, #${id} input`);
  const restored = new Set();
  const restore = () => {
    for (const id of boxes) {
      const input = inputOf(id);
      const suggested = id === "try-message"; // a suggestion comes with the persona, and gives way
      if (!input || restored.has(id) || (suggested && !arrived)) continue;
      restored.add(id);
      const text = sessionStorage.getItem(`persona_lab.unsent.${id}`);
      if (text && (suggested || !input.value)) {
        input.value = text;
        input.dispatchEvent(new Event("input", { bubbles: true }));
      }
    }
  };
  document.addEventListener("input", (event) => {
    const box = event.target.closest && boxes.find((id) => event.target.closest(`#${id}`));
    if (!box) return;
    restored.add(box); // a hand was there first
    sessionStorage.setItem(`persona_lab.unsent.${box}`, event.target.value);
  });
  setInterval(() => {
    restore();
    for (const id of boxes) {
      const input = inputOf(id);
      if (input && restored.has(id) && !input.value) sessionStorage.removeItem(`persona_lab.unsent.${id}`);
    }
  }, 500);
})();
