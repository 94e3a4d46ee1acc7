// A phone that locks ends the streams of the page, while the server goes on with the answer. When
// the page is visible again, it asks for the answer.

const AWAY_MS = 1500; // a shorter absence breaks no stream
let leftAt = Date.now(); // not performance.now(), which stands still while a phone sleeps
const ask = () => {
  if (document.getElementById("chat-stop")) document.getElementById("chat-return")?.click();
};
document.addEventListener("visibilitychange", () => {
  if (document.hidden) leftAt = Date.now();
  else if (Date.now() - leftAt > AWAY_MS) ask();
});
addEventListener("pageshow", (event) => event.persisted && ask());
