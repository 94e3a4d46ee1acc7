// The address of the page, as the browser has it.

export const address = new URL(".", location.href).href.replace(/\/$/, "");

// The server guesses its address from the Host header. A proxy may have changed that header.
let config;
Object.defineProperty(window, "gradio_config", {
  configurable: true,
  enumerable: true,
  get: () => config,
  set: (value) => {
    config = { ...value, root: address };
  },
});
