"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const hidden = new Set();

function fill(select, names) {
  for (const name of names) select.add(new Option(name, name));
}

function model(name) {
  for (const doc of Bokeh.documents) {
    const found = doc.get_model_by_name(name);
    if (found) return found;
  }
  return null;
}

function source(name) {
  for (const doc of Bokeh.documents)
    for (const one of doc._all_models.values()) if (one.name === name && one.type === "ColumnDataSource") return one;
  return null;
}

function curves() {
  const name = element("measure").value, measure = data.measures[name];
  const scale = data.percent.includes(name) ? 100 : 1, each = element("each").checked;
  const logx = element("logx").checked, logy = element("logy").checked;
  const times = (ys) => (scale === 1 ? ys : ys.map((y) => scale * y));
  const lines = { xs: [], ys: [], color: [], name: [], alpha: [] };
  data.runs.forEach((run, i) => {
    const group = data.groups[run.group], lonely = group.runs === 1;
    if (hidden.has(run.group) || !(each || lonely)) return;
    lines.xs.push(data.epochs[measure.runs[i][0]]); lines.ys.push(times(measure.runs[i][1]));
    lines.color.push(group.color); lines.name.push(run.name); lines.alpha.push(lonely ? 1 : 0.35);
  });
  const bands = { xs: [], ys: [], color: [], name: [], alpha: [] }, means = { xs: [], ys: [], color: [], name: [], alpha: [] };
  measure.bands.forEach(([number, mean, half], g) => {
    const xs = data.epochs[number];
    if (hidden.has(g) || !xs.length) return;
    const low = mean.map((m, i) => m - half[i]), high = mean.map((m, i) => m + half[i]);
    const floor = Math.min(...mean.filter((m) => m > 0)) / 10;
    const kept = logy ? low.map((y) => Math.max(y, floor)) : low;
    bands.xs.push(xs.concat([...xs].reverse())); bands.ys.push(times(high.concat([...kept].reverse())));
    means.xs.push(xs); means.ys.push(times(mean));
    for (const one of [bands, means]) {
      one.color.push(data.groups[g].color); one.name.push(data.groups[g].name); one.alpha.push(1);
    }
  });
  const which = `${logx ? "log" : "linear"} ${logy ? "log" : "linear"}`;
  for (const x of ["linear", "log"]) for (const y of ["linear", "log"]) model(`curves ${x} ${y}`).visible = `${x} ${y}` === which;
  model(`curves ${which}`).left[0].axis_label = name + (scale === 100 ? " (%)" : "");
  source(`lines ${which}`).data = lines; source(`bands ${which}`).data = bands; source(`means ${which}`).data = means;
}

function swept() {
  const key = element("key").value, result = element("result").value, log = element("logk").checked;
  const xs = data.numbers.keys[key], ys = data.numbers.results[result], scale = result.includes("accuracy") ? 100 : 1;
  const dots = { x: [], y: [], color: [], name: [] };
  data.runs.forEach((run, i) => {
    if (ys[i] === null) return;
    dots.x.push(xs[i]); dots.y.push(scale * ys[i]);
    dots.color.push(data.groups[run.group].color); dots.name.push(run.name);
  });
  const which = log ? "log" : "linear";
  for (const x of ["linear", "log"]) model(`plot of dots ${x}`).visible = x === which;
  const plot = model(`plot of dots ${which}`);
  plot.below[0].axis_label = key; plot.left[0].axis_label = result + (scale === 100 ? " (%)" : "");
  source(`dots ${which}`).data = dots;
  const parallel = model("parallel");
  if (parallel) ways(parallel, result, ys);
}

function ways(plot, result, ys) {
  const keys = Object.keys(data.numbers.keys), columns = keys.map((key) => data.numbers.keys[key]).concat([ys]);
  const even = (values) => {
    const there = values.filter((v) => v !== null), low = Math.min(...there), high = Math.max(...there);
    const log = low > 0 && high / low >= 20, at = (v) => (log ? Math.log(v) : v);
    return (v) => (high === low ? 0.5 : (at(v) - at(low)) / (at(high) - at(low)));
  };
  const scales = columns.map(even), found = { xs: [], ys: [], color: [], name: [], alpha: [] };
  data.runs.forEach((run, i) => {
    if (ys[i] === null) return;
    found.xs.push(columns.map((_, k) => k)); found.ys.push(columns.map((values, k) => scales[k](values[i])));
    const share = scales[scales.length - 1](ys[i]);
    found.color.push(`hsl(${Math.round(230 - 190 * share)}, 75%, 50%)`); found.alpha.push(0.7); found.name.push(run.name);
  });
  source("ways").data = found;
  plot.below[0].major_label_overrides = new Map(keys.concat([result]).map((key, k) => [k, key]));
}

function legend() {
  data.groups.forEach((group, g) => {
    const label = document.createElement("label"), box = document.createElement("input"), line = document.createElement("i");
    box.type = "checkbox"; box.checked = true; line.style.background = group.color;
    box.onchange = () => { box.checked ? hidden.delete(g) : hidden.add(g); curves(); };
    label.append(box, line, `${group.name}${group.runs > 1 ? ` (${group.runs} runs)` : ""}`);
    element("legend").append(label);
  });
}

function sortable(table) {
  table.querySelectorAll("th").forEach((head, column) => {
    head.onclick = () => {
      const up = head.dataset.way === "down", body = table.tBodies[0], rows = [...body.rows];
      const text = (row) => row.cells[column].innerText.trim(), value = (row) => parseFloat(text(row).replaceAll(",", ""));
      rows.sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (isNaN(x) || isNaN(y)) return isNaN(x) && isNaN(y) ? text(a).localeCompare(text(b)) : isNaN(x) ? 1 : -1;
        return x - y;
      });
      table.querySelectorAll("th").forEach((other) => delete other.dataset.way);
      head.dataset.way = up ? "up" : "down";
      body.append(...(up ? rows : rows.reverse()));
    };
  });
}

function begin() {
  if (!Bokeh.documents.length || !model("curves linear linear")) return setTimeout(begin, 20);
  fill(element("measure"), Object.keys(data.measures));
  for (const id of ["measure", "logx", "logy", "each"]) element(id).onchange = curves;
  legend();
  curves();
  if (element("key")) {
    fill(element("key"), Object.keys(data.numbers.keys)); fill(element("result"), Object.keys(data.numbers.results));
    for (const id of ["key", "result", "logk"]) element(id).onchange = swept;
    swept();
  }
  document.body.dataset.ready = "yes";
}

document.querySelectorAll("table.sortable").forEach(sortable);
begin();
