// What this browser keeps, by name. What it refuses to keep lasts as long as the page.

export const [local, session] = ["localStorage", "sessionStorage"].map((name) => {
  try {
    return window[name] ?? {};
  } catch {
    return {};
  }
});
