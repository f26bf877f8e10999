'use strict';
// Text from elsewhere (leases, the log) only ever becomes a text node or an attribute's value: nothing here
// writes HTML.
const EVERY = 2000, MAP_PEERS = 48, TABLE_PEERS = 500;
const at = (id) => document.getElementById(id);
const SVG = 'http://www.w3.org/2000/svg';

function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}
function draw(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function scaled(value, units, base) {
  let unit = 0;
  while (value >= base && unit + 1 < units.length) { value /= base; unit += 1; }
  return `${value >= 100 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}
const bits = (bytes) => scaled(bytes * 8, ['bit/s', 'kbit/s', 'Mbit/s', 'Gbit/s', 'Tbit/s'], 1000);
const size = (bytes) => scaled(bytes, ['B', 'KiB', 'MiB', 'GiB', 'TiB'], 1024);
const count = (number) => number.toLocaleString('en');
const plural = (number, word) => `${count(number)} ${word}${number === 1 ? '' : 's'}`;
function duration(seconds) {
  const steps = [[86400, 'd'], [3600, 'h'], [60, 'min']];
  for (const [length, unit] of steps) if (seconds >= 2 * length) return `${Math.floor(seconds / length)} ${unit}`;
  return `${Math.max(0, Math.round(seconds))} s`;
}

let before = null, looks = 0;
// What was counted a second, since the last look.
function rate(now, path, key) {
  const then = before && path(before, key);
  const passed = before ? now.time - before.time : 0;
  const value = path(now, key);
  return then === undefined || then === null || passed <= 0 || value < then ? 0 : (value - then) / passed;
}

function badges(now) {
  const state = now.status && now.status.lease.state;
  const store = now.store_connected;
  const list = [
    now.problems === null ? ['starting', 'warn'] : now.problems.length ? ['not ready', 'bad'] : ['ready', 'good'],
    state ? [`lease ${state}`, state === 'held' ? 'good' : state === 'saved' ? 'warn' : 'bad'] : ['no lease yet', 'warn'],
    store ? ['store connected', 'good'] : ['store NOT connected', 'bad'],
  ];
  at('badges').replaceChildren(...list.map(([text, kind]) => make('span', { class: `badge ${kind}` }, text)));
  const problems = [...(now.problems || []), ...(now.status ? now.status.conflicts : [])];
  for (const peer of now.status ? now.status.peers : []) if (peer.problem) problems.push(`${peer.subnet}: ${peer.problem}`);
  at('notice').hidden = problems.length === 0;
  at('notice').textContent = problems.slice(0, 10).join('\n');
}

function card(title, main, ...more) {
  return make('div', {}, make('h3', {}, title), make('p', { class: 'main' }, main), ...more.map((text) => make('p', { class: 'quiet' }, text)));
}
function facts(now) {
  const { status, lease } = now;
  const traffic = (direction) => {
    const bytes = rate(now, (s) => s.status && s.status.counters[direction].bytes);
    const packets = rate(now, (s) => s.status && s.status.counters[direction].packets);
    const total = status.counters[direction];
    return card(direction === 'egress' ? 'Out, to the wire' : 'In, from the wire', bits(bytes),
      `${count(Math.round(packets))} packets/s`, `${size(total.bytes)} in all`);
  };
  const backend = status.backend;
  const where = backend.port ? `${backend.type}, UDP port ${backend.port}` : backend.type;
  const ends = lease && lease.expires ? `ends in ${duration(lease.expires - now.time)}` : 'without end';
  const cards = [
    card('Lease', status.lease.subnet, `of ${status.network}`, lease ? ends : status.lease.state),
    card('This node', status.lease.public_ip, where, status.device ? `${status.device.name}, MTU ${status.device.mtu}` : 'no tunnel'),
    card('Store', now.store_connected ? 'connected' : 'NOT connected', status.store.kind, status.store.where),
  ];
  if (status.device) cards.push(traffic('egress'), traffic('ingress'));
  cards.push(card('Put back', plural(status.host.restored, 'time'), 'what others had changed here'));
  at('facts').replaceChildren(...cards);
}

function peerRates(now) {
  return now.peers.map((peer) => {
    const of = (read) => rate(now, (s) => { const p = s.byKey.get(peer.key); return p && read(p); });
    return { ...peer, out: of((p) => p.egress.bytes), in: of((p) => p.ingress.bytes),
      dropping: of((p) => p.egress.drops + p.ingress.drops), drops: peer.egress.drops + peer.ingress.drops };
  });
}
const busy = (peer) => peer.out + peer.in;

function map(now, peers) {
  const shown = [...peers].sort((a, b) => busy(b) - busy(a) || a.order - b.order).slice(0, MAP_PEERS)
    .sort((a, b) => a.order - b.order);
  const [x, y] = [320, 200];
  const lines = [], nodes = [];
  shown.forEach((peer, index) => {
    const angle = (index / shown.length) * 2 * Math.PI - Math.PI / 2 + (shown.length === 2 ? Math.PI / 2 : 0);
    // Many share two rings.
    const ring = shown.length > 16 && index % 2 ? 0.68 : 1;
    const [px, py] = [x + 250 * ring * Math.cos(angle), y + 150 * ring * Math.sin(angle)];
    const kind = peer.problem || peer.dropping > 0 ? 'bad' : busy(peer) > 0 ? '' : 'idle';
    const width = busy(peer) > 0 ? Math.min(9, 1 + Math.log10(1 + busy(peer) / 100)) : 1;
    const title = `${peer.subnet} at ${peer.public_ip} (${peer.way})\nout ${bits(peer.out)}, in ${bits(peer.in)}\n${plural(peer.drops, 'drop')}${peer.problem ? '\n' + peer.problem : ''}`;
    const line = draw('line', { x1: x, y1: y, x2: px.toFixed(1), y2: py.toFixed(1), 'stroke-width': width.toFixed(1),
      class: `${kind} ${peer.way === 'direct' ? 'direct' : ''}` });
    line.append(draw('title', {}, title));
    const group = draw('g', {});
    const circle = draw('circle', { cx: px.toFixed(1), cy: py.toFixed(1), r: shown.length > 16 ? 7 : 11, class: kind });
    group.append(draw('title', {}, title), circle);
    if (shown.length <= 24) {
      const below = py >= y ? 24 : -28;
      group.append(draw('text', { x: px.toFixed(1), y: (py + below).toFixed(1) }, peer.subnet),
        draw('text', { x: px.toFixed(1), y: (py + below + 12).toFixed(1), class: 'small' }, peer.public_ip));
    }
    lines.push(line);
    nodes.push(group);
  });
  const self = draw('g', {});
  self.append(draw('circle', { cx: x, cy: y, r: 14, class: 'self' }), draw('text', { x, y: y + 30 }, now.status.lease.subnet),
    draw('text', { x, y: y + 42, class: 'small' }, now.status.lease.public_ip));
  at('map').replaceChildren(...lines, ...nodes, self);
  at('legend').textContent = peers.length === 0 ? 'No other nodes yet.'
    : `Thicker is more traffic; red: drops or a problem; dashed: a direct route.${peers.length > shown.length ? ` The ${shown.length} busiest of ${peers.length} nodes.` : ''}`;
}

function table(peers) {
  at('peer-count').textContent = count(peers.length);
  const cell = (label, text, kind) => make('td', { 'data-label': label, class: kind || '' }, text);
  const rows = [...peers].sort((a, b) => busy(b) - busy(a) || a.order - b.order).slice(0, TABLE_PEERS).map((peer) => make('tr', {},
    cell('', peer.subnet), cell('', peer.public_ip),
    cell('way', peer.problem ? `${peer.way}: ${peer.problem}` : peer.way, peer.problem ? 'bad' : ''),
    cell('out', bits(peer.out), 'number'), cell('in', bits(peer.in), 'number'),
    cell('drops', count(peer.drops), peer.dropping > 0 ? 'number bad' : 'number'),
    cell('seen', peer.last_seen === null ? 'never' : `${duration(peer.last_seen)} ago`, 'number')));
  if (peers.length > TABLE_PEERS) rows.push(make('tr', { class: 'note' }, make('td', { colspan: 7, class: 'quiet' }, `and ${peers.length - TABLE_PEERS} more: overlayctl status`)));
  at('peers').tBodies[0].replaceChildren(...rows);
}

function drops(now) {
  const rows = [];
  for (const direction of ['egress', 'ingress']) {
    for (const [reason, number] of Object.entries(now.status.drops[direction])) {
      if (number === 0) continue;
      const each = rate(now, (s) => s.status && s.status.drops[direction][reason]);
      rows.push(make('tr', {}, make('td', {}, direction), make('td', {}, reason.replaceAll('_', ' ')),
        make('td', { class: 'number' }, count(number)), make('td', { class: each > 0 ? 'number bad' : 'number quiet' }, `${each.toFixed(1)}/s`)));
    }
  }
  at('drops').tBodies[0].replaceChildren(...(rows.length ? rows : [make('tr', {}, make('td', { class: 'quiet' }, 'none'))]));
}

let lastEvent = 0;
function events(list) {
  for (const event of list) {
    if (event.number <= lastEvent) continue;
    lastEvent = event.number;
    const fields = Object.entries(event.fields).map(([name, value]) => `${name}=${value}`).join(' ');
    const kind = { error: 'bad', warn: 'warn' }[event.level] || '';
    const time = make('time', { datetime: event.time }, new Date(event.time).toLocaleTimeString());
    at('events').prepend(make('li', {}, time, make('span', { class: kind }, event.message), ' ', make('span', { class: 'fields' }, fields)));
  }
  while (at('events').children.length > 256) at('events').lastChild.remove();
}

function show(now) {
  badges(now);
  const there = now.status !== null;
  for (const section of document.querySelectorAll('main > section')) section.hidden = !there && !section.contains(at('events'));
  at('node').textContent = there ? `${now.status.device ? now.status.device.name + ' ' : ''}${now.status.lease.subnet}` : 'waiting: see the events';
  document.title = there ? `overlayd ${now.status.lease.subnet}` : 'overlayd';
  at('version').textContent = `overlayd ${now.version}`;
  if (there) {
    const peers = peerRates(now);
    facts(now);
    map(now, peers);
    table(peers);
    drops(now);
  }
}

async function ask(path) {
  const answer = await fetch(path, { cache: 'no-store' });
  if (!answer.ok) throw new Error(`${answer.status}`);
  return answer.json();
}
async function look() {
  try {
    const [now, list] = await Promise.all([ask('/summary.json'), ask(`/v1/events?after=${lastEvent}`)]);
    // A daemon that was started again counts anew.
    if (before && now.started !== before.started) { lastEvent = 0; at('events').replaceChildren(); before = null; look(); return; }
    const ways = new Map((now.status ? now.status.peers : []).map((peer) => [`${peer.subnet} ${peer.public_ip}`, peer]));
    now.byKey = new Map();
    const none = { packets: 0, bytes: 0, drops: 0 };
    const counted = new Map(now.peers.map((peer) => [`${peer.subnet} ${peer.public_ip}`, peer]));
    now.peers = [...ways].map(([key, peer], order) => ({ egress: none, ingress: none, last_seen: null, ...counted.get(key), ...peer, key, order }));
    for (const peer of now.peers) now.byKey.set(peer.key, peer);
    show(now);
    events(list.events);
    before = now;
    at('age').textContent = '';
    looks += 1;
    document.body.dataset.looks = looks;
  } catch (error) {
    at('age').textContent = `— no answer since ${before ? new Date(before.time * 1000).toLocaleTimeString() : 'the start'} (${error.message})`;
    at('notice').hidden = false;
    at('notice').textContent = 'The daemon does not answer; what is shown may be old.';
  }
  // Rates need two looks.
  setTimeout(look, looks === 1 ? 500 : EVERY);
}
look();
