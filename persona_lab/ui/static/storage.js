// Values that survive a reload of this browser tab.

// Stores `value`; when the storage is full, removes the old value, which is out of date.
export const keep = (key, value) => {
  try {
    sessionStorage.setItem(key, value);
  } catch {
    sessionStorage.removeItem(key);
  }
};
