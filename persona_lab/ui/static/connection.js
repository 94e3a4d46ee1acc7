// Notices a lost server: the page shows it, polls, and reloads once the server is back. A page that
// was reloaded and never opened a persona doesn't reload again: then a proxy is in the way, and each
// reload would end the same.

// State attributes that page.css shows: data-server, data-save, data-opening,
// data-storage.
export const page = document.documentElement.dataset;

const wasReloaded = performance.getEntriesByType("navigation")[0]?.type === "reload";
const originalFetch = window.fetch.bind(window);
const poll = async () => {
  const answer = await originalFetch(location.href, { method: "HEAD", cache: "no-store" }).catch(() => null);
  if (answer?.ok) location.reload();
  else setTimeout(poll, 1500);
};
const lose = () => {
  if (page.server) return;
  page.server = page.arrived || !wasReloaded ? "lost" : "unreachable";
  if (page.server === "unreachable") return;
  setTimeout(poll, 1500);
};
window.fetch = async (...request) => {
  try {
    const answer = await originalFetch(...request);
    if ([502, 504].includes(answer.status)) lose();
    return answer;
  } catch (error) {
    if (error.name !== "AbortError") lose();
    throw error;
  }
};
