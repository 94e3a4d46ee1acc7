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

  const page = document.documentElement.dataset; // page.css shows its states

  // Whoever asks the server and gets no answer learns it here: the page says so, waits, and opens
  // anew once the server is back.
  const ask = window.fetch.bind(window);
  const knock = async () => {
    const answer = await ask(location.href, { method: "HEAD", cache: "no-store" }).catch(() => null);
    if (answer?.ok) location.reload();
    else setTimeout(knock, 1500);
  };
  const lose = () => {
    if (page.server === "lost") return;
    page.server = "lost";
    setTimeout(knock, 1500);
  };
  window.fetch = async (...request) => {
    try {
      const answer = await ask(...request);
      if ([502, 504].includes(answer.status)) lose();
      return answer;
    } catch (error) {
      if (error.name !== "AbortError") lose();
      throw error;
    }
  };

  let composing = false;
  for (const kind of ["compositionstart", "compositionend"])
    document.addEventListener(kind, () => { composing = kind === "compositionstart"; }, true);

  let touched = ""; // a hand has changed the form since it was opened
  let typed = false; // … and that change hasn't left the page yet
  let saving = false; // … or is on its way to the store
  const refused = new Set(); // personas whose changes the store didn't take
  const judge = (persona, mark) => {
    if (mark.includes('role="alert"')) refused.add(persona);
    else refused.delete(persona);
    return !refused.has(persona);
  };
  let sender = ""; // the persona whose change was sent last
  let handed = ""; // the persona whose unsaved fields the server got last
  let arrived = false;
  const editing = () => document.querySelector("#editing textarea, #editing input")?.value;

  // What a hand has changed and the store hasn't confirmed survives a reload: the server takes it
  // from here when the page arrives again.
  const keep = (key, value) => {
    try {
      sessionStorage.setItem(key, value);
    } catch {
      sessionStorage.removeItem(key); // full: what is old by now must not come back
    }
  };
  const COLUMNS = "persona_lab.columns";
  const UNSAVED = "persona_lab.unsaved"; // fields by persona, the one touched last at the end
  const mirror = () => JSON.parse(sessionStorage.getItem(UNSAVED) || "{}");
  const unsaved = (persona, fields) => {
    const { [persona]: known, ...others } = mirror();
    keep(UNSAVED, JSON.stringify({ ...others, [persona]: { ...known, ...fields } }));
    page.save = "saving";
  };
  const settle = (saved) => {
    delete page.save;
    if (!saved) return;
    const { [saved]: _, ...others } = mirror();
    if (Object.keys(others).length) keep(UNSAVED, JSON.stringify(others));
    else sessionStorage.removeItem(UNSAVED);
  };
  // … as the server takes it up again.
  const handOver = (persona) => {
    handed = persona;
    const fields = mirror()[persona];
    return fields ? JSON.stringify({ persona, fields }) : "";
  };
  // Gradio tells nothing more of a field once its request was lost: chips are read off the page.
  addEventListener("pagehide", () => {
    if (!touched || !(page.save || page.server)) return;
    const chips = [...document.querySelectorAll("#editor-form [id^=field-]:has([role=combobox])")];
    const language = document.querySelector("#field-language input:checked")?.value;
    unsaved(editing(), Object.fromEntries([...chips.map((field) => [
      field.id.slice("field-".length),
      [...field.querySelectorAll(".token > span")].map((chip) => chip.textContent),
    ]), ...(language ? [["language", language]] : [])]));
  });
  let idle;
  let reopening;
  let asked = ""; // the persona that was chosen and isn't open yet
  let choice = ""; // … and when
  let focused; // what had the focus when the form was closed
  let patience;
  const closeForm = (closed) => {
    clearTimeout(patience);
    if (closed) patience = setTimeout(() => { page.opening = "yes"; }, 500);
    else delete page.opening;
    const form = document.getElementById("editor-form");
    const active = document.activeElement;
    if (closed && form?.contains(active) && !NEXT[active.id]) focused = active;
    form?.toggleAttribute("inert", closed);
    if (!closed && document.activeElement === document.body) focused?.focus({ preventScroll: true });
    if (!closed) focused = undefined;
  };
  for (const kind of ["input", "pointerdown", "keydown", "paste", "drop"])
    document.addEventListener(kind, (event) => {
      const form = event.isTrusted && event.target.closest?.("#editor-form");
      if (!form || form.hasAttribute("inert")) return;
      touched = "yes";
      if (kind !== "input") return;
      typed = true;
      const field = event.target.closest("[id^=field-]")?.id.slice("field-".length);
      if (!field || !event.target.matches("[data-testid=textbox]")) return;
      unsaved(editing(), { [field]: event.target.value });
      clearTimeout(idle); // the same word written over itself is no change, and nothing is sent
      const persona = editing();
      idle = setTimeout(() => typed && !saving && page.server !== "lost" && settle(persona), 1500);
    }, true);

  window.personaLab = {
    language,
    // A key that was entered and answers side by side live in this page only.
    losesByReload: () =>
      Boolean(document.querySelector("#connect-keys .own")) ||
      [...document.querySelectorAll(".contestant .answer")].some((answer) => answer.textContent.trim()),
    setLanguage(to) {
      const secure = location.protocol === "https:" ? "; SameSite=None; Secure; Partitioned" : "; SameSite=Lax";
      document.cookie = `persona_lab_language=${to}; path=/; max-age=31536000${secure}`;
      location.reload();
    },
    toggleLight() {
      const dark = document.body.classList.toggle("dark");
      localStorage.setItem("persona_lab.light", dark ? "dark" : "light");
    },
    // A chooser tells of a choice twice, and also when it is only left: one that is news has a new
    // value.
    chosen(persona) {
      if (persona && persona !== (asked || editing())) {
        choice = `${(asked = persona)} ${Date.now()}`;
        this.closing();
      }
      return choice;
    },
    // Gradio fills a form field by field, and each field tells its change at once. While another
    // persona is being opened the form is a mixture of two: nothing of that is the visitor's
    // work, and none of it may be kept. So the form is closed until it is whole, and only what
    // a hand has touched since is saved.
    // What was typed just before is saved first; a demo that it made a copy of is that copy now.
    closing() {
      closeForm(true);
      clearTimeout(reopening);
      reopening = setTimeout(() => closeForm(false), 10000);
    },
    async opening(values) {
      this.closing();
      const before = editing();
      for (let calm = 0, tries = 0; calm < 3 && tries < 100; tries++) {
        await new Promise((resolve) => setTimeout(resolve, 30));
        calm = saving || (typed && tries < 20) ? 0 : calm + 1;
      }
      const after = editing();
      sender = touched = "";
      typed = false;
      edited = "";
      // What couldn't be saved waits until this persona is opened again.
      if (arrived && page.server !== "lost") settle(!refused.has(after) && after);
      return values.map((value) => (before && value === before ? after : value));
    },
    async reopening(values) {
      const [persona, ...others] = await this.opening(values);
      return [persona, ...others.slice(0, -1), handOver(persona)];
    },
    opened(field) {
      asked = "";
      follows = true;
      if (!arrived && window.innerWidth <= 760) {
        // On a phone the prompt waits folded under the editor.
        document.querySelector("#prompt-fold button.label-wrap.open")?.click();
      }
      arrived = true;
      watchPreview();
      clearTimeout(reopening);
      reopening = setTimeout(() => {
        closeForm(false);
        const input = field && inputOf(`field-${field}`);
        input?.focus();
        input?.select();
      }, 150);
    },
    // `names` are the fields' among the values; the form's own ids come last.
    byHand(values, names) {
      typed = false;
      const fields = JSON.stringify(names.map((name, i) => name && [name, values[i]]).filter(Boolean));
      if (touched && fields !== sent) unsaved(values.at(-2), Object.fromEntries(JSON.parse(fields)));
      sent = fields;
      saving = Boolean(touched);
      sender = touched && values.at(-2);
      return [...values.slice(0, -1), touched];
    },
    // The server has answered. `mark` is what it says of the saving: an alert where it couldn't.
    kept(mark) {
      saving = false;
      if (!sender) return; // no hand's change, or another persona was opened meanwhile
      const copy = editing();
      const saved = judge(copy, mark);
      if (saved && copy !== sender) {
        // The demo became a copy: what was typed since belongs to that.
        const fields = mirror()[sender];
        settle(sender);
        if (fields) unsaved(copy, fields);
        sender = copy;
      }
      if (!typed) settle(saved && copy);
    },
    // … of what the browser had kept, on opening the persona again.
    regained(mark) {
      const saved = judge(handed, mark);
      if (!typed && !saving) settle(saved && handed); // else a hand has gone on meanwhile
    },
    zone: () => Intl.DateTimeFormat().resolvedOptions().timeZone || "",
    // A file of `text`, made here: the server keeps none, and no door of it gives files out.
    saveSheet(text) {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
      link.download = `persona-lab-${new Date().toLocaleDateString("sv")}.csv`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
      return "";
    },
    remember(name, value) {
      if (value) localStorage.setItem(`persona_lab.${name}`, value);
    },
    // What was sent and is kept leaves the box; what was typed after it stays, and what an input
    // method is composing isn't broken off. Gradio's own idea of the box is a step behind the hand.
    taken(text) {
      const input = inputOf("chat-message");
      const drop = () => {
        if (!input.value.startsWith(text)) return;
        input.value = input.value.slice(text.length);
        input.dispatchEvent(new Event("input", { bubbles: true }));
      };
      if (text && composing) input.addEventListener("compositionend", () => setTimeout(drop), { once: true });
      else if (text) drop();
      return "";
    },
    // The columns of a comparison: how many, each one's model and persona.
    columns(values) {
      keep(COLUMNS, JSON.stringify(values));
    },
    // What this tab couldn't save is opened first, whatever another tab opened last.
    last() {
      const [persona, model] = ["persona", "model"].map(
        (name) => localStorage.getItem(`persona_lab.${name}`) || "",
      );
      const last = Object.keys(mirror()).at(-1) || persona;
      return [last, model, handOver(last), sessionStorage.getItem(COLUMNS) || ""];
    },
  };

  // The preview keeps in sight what is being edited. Each redraw begins a new paper at its top.
  let edited = "";
  let scrolled = 0;
  let sent = "";
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
  // Beside the editor the paper takes what the window leaves, and says when it goes on below.
  const fitPaper = () => {
    const paper = document.querySelector("#prompt-preview .paper");
    if (!paper) return;
    const [side, sheet] = [document.getElementById("prompt-side"), paper].map((e) => e.getBoundingClientRect());
    const room = Math.floor(window.innerHeight - 16 - side.top - (side.height - sheet.height));
    document.documentElement.style.setProperty("--paper-height", `${Math.max(220, room)}px`);
    paper.classList.toggle("goes-on", paper.scrollHeight - paper.scrollTop - paper.clientHeight > 8);
  };
  const tellWrong = () => {
    const wrong = document.querySelector("#saved [data-wrong]")?.dataset.wrong;
    for (const field of document.querySelectorAll("#editor-form [id^=field-]"))
      field.querySelector("textarea, input:not([type=radio])")?.setAttribute("aria-invalid", field.id === `field-${wrong}`);
  };
  const nameThread = () => {
    const name = document.querySelector("#persona-head h2")?.textContent || "";
    document.documentElement.style.setProperty("--persona", JSON.stringify(name));
  };
  const watched = new Set();
  const watch = (id, tell) => {
    const element = document.getElementById(id);
    if (!element || watched.has(element)) return;
    watched.add(element);
    new MutationObserver(tell).observe(element, { childList: true, subtree: true });
    tell();
  };
  const watchPreview = () => {
    scrolled = 0;
    watch("saved", tellWrong);
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
    // Gradio opens a list upwards from the lower half of the window; ours opens down while it fits.
    const room = window.innerHeight - field.getBoundingClientRect().bottom - 16;
    field.classList.toggle("opens-down", room >= 180);
    field.style.setProperty("--room", `${room}px`);
  });

  // A chooser is written over, not into; and chosen with Enter, it keeps the focus.
  const chooser = (target) => target.matches?.("#who [role=combobox], #model [role=combobox], .choosers [role=combobox]");
  document.addEventListener("focusin", (event) => {
    if (chooser(event.target)) setTimeout(() => event.target.select());
  });
  const press = (input, key) => input.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const closeList = (input) => press(input, "Escape");
  document.addEventListener("keydown", (event) => {
    const input = event.target;
    if (!event.isTrusted || !input.matches?.("[role=combobox]")) return;
    if (event.key === "Tab") {
      event.stopPropagation(); // Gradio would open the list again behind the focus that leaves
      // … and a list that scrolls would be a stop on the way, gone as soon as it is reached.
      for (const list of input.closest(".wrap").querySelectorAll(".options, [role=listbox]")) list.tabIndex = -1;
    }
    if (event.key !== "Enter" || !chooser(input)) return;
    setTimeout(() => {
      if (document.activeElement !== document.body) return;
      input.focus({ preventScroll: true });
      closeList(input);
    });
  }, true);
  // A list that was closed with Escape opens again at a click, though the focus is there already.
  document.addEventListener("pointerdown", (event) => {
    const input = event.target;
    if (!input.matches?.("[role=combobox]") || document.activeElement !== input) return;
    if (input.getAttribute("aria-expanded") === "false") setTimeout(() => press(input, "ArrowDown"));
  });

  // Each of Gradio's radio buttons is a group of its own, which arrows don't leave.
  document.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step || !event.target.matches?.("fieldset input[type=radio]")) return;
    const radios = [...event.target.closest("fieldset").querySelectorAll("input[type=radio]")];
    const next = radios.at((radios.indexOf(event.target) + step) % radios.length);
    event.preventDefault();
    next.focus();
    next.click();
  });

  // A touch on a coloured span of the prompt leads to the field that it came from.
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

  // Enter that ends a composition (Japanese, Chinese, Korean input) is no Enter. Gradio's choosers
  // would take the reading for a word.
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.isComposing || event.keyCode === 229)) event.stopPropagation();
  }, true);

  const copy = async (text) => {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    // Over plain HTTP from another machine there is no clipboard for scripts but this one.
    const box = document.body.appendChild(document.createElement("textarea"));
    box.value = text;
    box.select();
    document.execCommand("copy");
    box.remove();
  };
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    await copy(button.dataset.copy);
    button.classList.add("copied");
    setTimeout(() => button.classList.remove("copied"), 1200);
  });

  // Examples for programs name the address that this page came from.
  setInterval(() => {
    for (const place of document.querySelectorAll("[data-origin]:empty"))
      place.textContent = location.origin;
  }, 500);

  // How long an answer is waited for.
  const since = new WeakMap();
  setInterval(() => {
    for (const place of document.querySelectorAll("#tried, .contestant, #thread")) {
      const waiting = place.querySelector(".waiting");
      if (!waiting) {
        since.delete(place);
        place.style.removeProperty("--waited");
        continue;
      }
      if (!since.has(place)) since.set(place, performance.now());
      const seconds = Math.floor((performance.now() - since.get(place)) / 1000);
      place.style.setProperty("--waited", seconds ? `"${seconds}${waiting.dataset.unit}"` : '""');
    }
  }, 250);

  // The end of the thread stays in sight until the reader scrolls up, and is again from their next
  // message on. (Gradio's own way pulls a reader back, and leaves a message out of sight.)
  let follows = true;
  let top = 0;
  const talk = () => document.querySelector("#thread .bubble-wrap");
  const keepEnd = () => follows && talk()?.scrollTo(0, talk().scrollHeight);
  const follow = () => {
    follows = true;
    keepEnd();
  };
  setInterval(() => watch("thread", keepEnd), 250);
  document.addEventListener("scroll", ({ target }) => {
    if (target !== talk()) return;
    if (target.scrollHeight - target.scrollTop - target.clientHeight < 2) follows = true;
    else if (target.scrollTop < top) follows = false;
    top = target.scrollTop;
  }, true);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && event.target.closest?.("#chat-message")) follow();
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest("#chats, #chat-send, #chat-again")) follow();
    if (event.target.closest("[role=tab]")) setTimeout(keepEnd, 50);
  });

  // Whoever uses a button that goes away goes on at what comes next, not at the top of the page.
  const NEXT = {
    "chat-delete": ["chat-undo", "chat-message"],
    "persona-delete": ["persona-restore"],
    "persona-restore": ["field-name"],
    "persona-revert": ["persona-revert", "persona-redo"],
    "persona-redo": ["persona-redo", "persona-revert"],
    "token-revoke": ["token-list", "token-name"],
  };
  // … key-openai-forget: key-openai; column-1-remove: compare-add; chat-stop: chat-message.
  const nextOf = (id) => NEXT[id] || (
    id.startsWith("column-") ? [id.endsWith("-remove") ? "compare-add" : "compare-message"]
    : [id.replace(/-forget$/, ""), id.replace(/-\w+$/, "-message")]
  );
  let last = ""; // what had the focus
  let lost = 0; // for how many looks nothing has it
  let finger = false; // a touch that opened a keyboard over half the page would be no help
  document.addEventListener("focusin", (event) => { last = event.target.closest("[id]")?.id || ""; });
  document.addEventListener("keydown", () => { finger = false; }, true);
  document.addEventListener("pointerdown", (event) => {
    finger = event.pointerType === "touch";
    last = ""; // who touches what takes no focus has left
  }, true);
  setInterval(() => {
    lost = last && !finger && document.hasFocus() && document.activeElement === document.body ? lost + 1 : 0;
    if (lost < 2) return; // what comes next may be on its way
    for (const id of nextOf(last)) {
      (inputOf(id) || document.getElementById(id))?.focus();
      if (document.activeElement !== document.body) return;
    }
  }, 100);

  document.addEventListener("toggle", (event) => {
    if (event.target.open && event.target.closest("#thread")) event.target.scrollIntoView({ block: "nearest" });
  }, true);

  // The tab that was open is open again after a reload.
  const TAB = "persona_lab.tab";
  const tabs = () => [...document.querySelectorAll("#tabs [role=tab]")];
  document.addEventListener("click", (event) => {
    const at = tabs().indexOf(event.target.closest("[role=tab]"));
    if (at > 0) sessionStorage.setItem(TAB, at);
    else if (at === 0) sessionStorage.removeItem(TAB);
  });
  const reopenTab = () => {
    if (document.getElementById("editor-form")) tabs()[sessionStorage.getItem(TAB)]?.click();
    else requestAnimationFrame(reopenTab);
  };
  if (sessionStorage.getItem(TAB)) reopenTab();

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
    keep(`persona_lab.unsent.${box}`, event.target.value);
  });
  setInterval(() => {
    restore();
    for (const id of boxes) {
      const input = inputOf(id);
      if (input && restored.has(id) && !input.value) sessionStorage.removeItem(`persona_lab.unsent.${id}`);
    }
  }, 500);
})();
