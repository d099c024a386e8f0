/**
 * The list of models, and what is known about the chosen one.
 *
 * @typedef {import("wire").ModelInfo} ModelInfo
 */

import { el, fill } from "./dom.js";

/** Whether a model may be able to score. What an unloaded model can do is known only if the catalog says so. */
const mayScore = (/** @type {ModelInfo} */ info) =>
  info.outputs.length ? info.outputs.includes("score") : info.model_type !== "embedding";

/**
 * Fill the list: models that are loaded come first, each followed by its adapters. The choice is kept if possible.
 * @param {HTMLSelectElement} select
 * @param {ModelInfo[]} models
 */
export function fillModels(select, models) {
  const chosen = select.value;
  const scorers = models.filter(mayScore);
  const groups = [
    { label: "Loaded", found: scorers.filter((info) => info.loaded) },
    { label: "Loaded on first use", found: scorers.filter((info) => !info.loaded) },
  ];
  fill(
    select,
    groups
      .filter(({ found }) => found.length)
      .map(({ label, found }) => el("optgroup", { label }, found.flatMap(options))),
  );
  if ([...select.options].some((option) => option.value === chosen)) select.value = chosen;
}

/** @param {ModelInfo} info */
function options(info) {
  const names = [info.name, ...(info.adapters ?? []).map((adapter) => `${info.name}:${adapter.name}`)];
  return names.map((name) => el("option", { value: name }, name));
}

/**
 * Show the state of a model: one word, the progress of a load, and a list of facts.
 * @param {HTMLElement} state
 * @param {HTMLElement} facts
 * @param {ModelInfo} info
 */
export function showModel(state, facts, info) {
  state.className = `pill ${info.state}`;
  fill(state, info.state === "available" ? "not loaded" : info.state, loading(info));
  const rows = [
    ["Reads", `${info.max_sequence_length ?? "an unknown number of"} tokens per text or pair`],
    ["Outputs", info.outputs.join(", ") || "unknown until it is loaded"],
    ["Memory", info.memory_bytes ? `${(info.memory_bytes / 2 ** 20).toFixed(1)} MiB of weights` : ""],
    ["Weights", [info.source, info.revision].filter(Boolean).join(" @ ")],
    ["Adapters", (info.adapters ?? []).map((each) => `${each.name}${each.loaded ? "" : " (not loaded)"}`).join(", ")],
    ["Profiles", info.profiles.filter((name) => name !== "default").join(", ")],
    ["Licence", info.license ?? ""],
    ["About", info.description ?? ""],
    ["Warning", info.warning ?? ""],
    ["Last error", info.last_error ?? ""],
  ];
  fill(
    facts,
    rows.filter(([, value]) => value).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]),
  );
}

/** @param {ModelInfo} info */
function loading({ progress }) {
  if (!progress) return "";
  const { bytes_done: done, bytes_total: total, phase } = progress;
  return ` · ${phase}${total ? ` ${Math.floor((100 * done) / total)} %` : ""}`;
}
