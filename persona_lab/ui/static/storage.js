// Values that survive a reload. Where the browser refuses its storage, the page has one of its own
// until it is closed, and says so.

const inPage = () => {
  const values = new Map();
  return {
    getItem: (key) => values.get(key) ?? null,
    setItem: (key, value) => void values.set(key, String(value)),
    removeItem: (key) => void values.delete(key),
    key: (index) => [...values.keys()][index] ?? null,
    clear: () => values.clear(),
    get length() {
      return values.size;
    },
  };
};
// A storage that is full isn't refused.
const isStorageRefused = (name) => {
  try {
    const storage = window[name];
    if (storage.length) return false;
    storage.setItem("persona_lab.test", "");
    storage.removeItem("persona_lab.test");
    return false;
  } catch {
    return true;
  }
};
for (const name of ["localStorage", "sessionStorage"]) {
  if (!isStorageRefused(name)) continue;
  Object.defineProperty(window, name, { value: inPage(), configurable: true });
  document.documentElement.dataset.storage = "refused"; // page.css shows it
}

// Stores `value`; when the storage is full, removes the old value, which is out of date.
export const keep = (key, value, storage = sessionStorage) => {
  try {
    storage.setItem(key, value);
  } catch {
    storage.removeItem(key);
  }
};

// A frame without an origin has no cookies.
export const cookies = () => {
  try {
    return document.cookie;
  } catch {
    return "";
  }
};
