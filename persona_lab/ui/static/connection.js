// Notices a lost server: the page shows it, polls, and reloads once the server is back.

// State attributes that page.css shows: data-server, data-save, data-opening.
export const page = document.documentElement.dataset;

const originalFetch = window.fetch.bind(window);
const poll = async () => {
  const answer = await originalFetch(location.href, { method: "HEAD", cache: "no-store" }).catch(() => null);
  if (answer?.ok) location.reload();
  else setTimeout(poll, 1500);
};
const lose = () => {
  if (page.server === "lost") return;
  page.server = "lost";
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
