// The dialog that lists the kept conversations, opens and deletes them.

import * as conversations from "./conversations.js";
import { $, announce, element } from "./dom.js";
import { t } from "./strings.js";

let page;

// Connect the dialog to the page: `isShown(id)`, `open(conversation)`, `startNew()`.
export function connectHistory(connected) {
  page = connected;
  $("show-history").onclick = show;
  $("close-history").onclick = () => $("history").close();
  $("delete-all").onclick = () => forget(conversations.list());
}

function show() {
  const found = conversations.list();
  $("history-list").replaceChildren(...found.map(item));
  $("delete-all").hidden = !found.length;
  if (!$("history").open) $("history").showModal();
}

function item(kept) {
  const title = kept.turns[0].prompt.trim().slice(0, 200);
  const time = element("time", "", new Date(kept.updated).toLocaleString());
  const load = element("button", "load", element("span", "", title), time);
  const remove = element("button", "", t("Delete"));
  load.firstChild.dir = "auto";
  if (page.isShown(kept.id)) load.ariaCurrent = "true";
  load.onclick = () => {
    $("history").close();
    if (!page.isShown(kept.id)) page.open(kept);
  };
  remove.ariaLabel = `${t("Delete")}: ${title}`;
  remove.onclick = () => forget([kept]);
  return element("li", "", load, remove);
}

function forget(kept) {
  for (const { id } of kept) {
    if (page.isShown(id)) page.startNew();
    conversations.remove(id);
  }
  show();
  $("close-history").focus();
  announce(t("Deleted."));
}
