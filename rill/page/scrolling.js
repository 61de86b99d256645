// Keeps the end of the conversation in view while it grows, unless the reader scrolls away from it.

// How close to the end, in pixels, counts as at the end.
const NEAR = 40;

export function followEnd(box, button) {
  // On a low screen the whole page scrolls.
  const scroller = () => (getComputedStyle(box).overflowY === "auto" ? box : document.documentElement);
  let [following, lastTop] = [true, 0];

  function scrollToEnd() {
    following = true;
    scroller().scrollTop = scroller().scrollHeight;
  }

  function update() {
    const { scrollTop, scrollHeight, clientHeight } = scroller();
    if (scrollTop + clientHeight + NEAR > scrollHeight) following = true;
    else if (scrollTop < lastTop) following = false;
    lastTop = scrollTop;
    button.hidden = following;
  }

  addEventListener("scroll", update, { capture: true, passive: true });
  const grown = new ResizeObserver(() => (following ? scrollToEnd() : update()));
  grown.observe(box);
  grown.observe(box.firstElementChild);
  button.onclick = scrollToEnd;
  return scrollToEnd;
}
