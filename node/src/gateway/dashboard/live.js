// Shows what goes on without loading the page again. The page says the same without this.
"use strict";
const every = 2000;
const place = (id) => document.getElementById(id);
const list = place("downloads");

const row = (one) => {
  const item = document.createElement("li");
  const name = document.createElement("span");
  name.textContent = one.name;
  const bar = document.createElement("progress");
  bar.max = 100;
  bar.value = one.part;
  const amount = document.createElement("span");
  amount.className = "quiet";
  amount.textContent = `${one.here} of ${one.size}`;
  item.append(name, bar, amount);
  return item;
};

const look = async () => {
  if (document.hidden) return;
  const answer = await fetch("/-/live.json").catch(() => null);
  if (!answer || !answer.ok) return;
  const now = await answer.json();
  for (const id of ["peers", "readers", "sent", "received"]) place(id).textContent = now[id];
  list.replaceChildren(...now.downloads.map(row));
  place("idle").hidden = now.downloads.length > 0;
};

if (list) setInterval(look, every);
