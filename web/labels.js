/** Every word that the panels show, by language. A language that lacks one shows English. */

import { locale } from "./comfy.js";

const EN = {
  "phase.prepare": "Preparing",
  "phase.build": "Building",
  "phase.load": "Loading",
  "phase.compile": "Compiling in step 1",
  "phase.sample": "Sampling",
  "phase.switch": "Switching experts",
  "phase.finish": "Finishing",
  "phase.done": "Done",
  "phase.stopped": "Stopped",
  "phase.failed": "Failed",
  "expert.high": "High noise",
  "expert.low": "Low noise",
  "kernel.self attention": "{chosen} attention",
  "kernel.precision": "{chosen}",
  "kernel.compile": "compiled",
  "kernel.placement": "weights: {chosen}",
  step: "step {n} of {m}",
  left: "about {time} left",
  "left.means": "Of the whole run: loading, sampling, the switch, and decoding where its time is known",
  loading: "{what}: {done} of {total}",
  "loading.rate": "{what}: {done} of {total}, {rate} MB/s",
  took: "in {time}",
  pace: "{pace} s/step",
  memory: "{used} of {total}, peak {peak}",
  split: "{high} high + {low} low, switch at timestep {timestep}",
  "split.one": "{steps} steps, all {expert}",
  "split.part": "runs {steps} of {all} steps",
  curve: "Noise level over {steps} steps: {split}",
  report: "Report",
  copy: "Copy",
  copied: "Copied",
  "on.host": "{bytes} on the host",
  time: "Time",
  speed: "Speed",
  peak: "Memory peak",
  predicted: "{bytes} predicted",
  switch: "expert switch",
  beyond: "{time} beyond normal steps",
  choices: "What ran, and why",
  "speed.line": "{steps} steps, {pace} s/step, {tflops} TFLOP/s",
  "not.chosen": "not chosen",
  instead: "instead of {asked}",
  machine: "{name}, {free} of {total} free",
  for: "for {size}, {model}",
  "estimate.time": "about {time} of sampling",
  "estimate.memory": "at most {bytes}",
  "estimate.all": "about {time} in all",
  "estimate.learned": "learned from finished runs here: {runs}",
  estimate: "estimate",
  "choices.here": "Choices and reasons",
  "plan.empty": "Queue the graph to see the plan.",
};

const ZH = {
  "phase.prepare": "准备中",
  "phase.build": "构建中",
  "phase.load": "加载中",
  "phase.compile": "第 1 步编译中",
  "phase.sample": "采样中",
  "phase.switch": "切换专家",
  "phase.finish": "收尾中",
  "phase.done": "完成",
  "phase.stopped": "已停止",
  "phase.failed": "失败",
  "expert.high": "高噪声",
  "expert.low": "低噪声",
  "kernel.self attention": "{chosen} 注意力",
  "kernel.precision": "{chosen}",
  "kernel.compile": "已编译",
  "kernel.placement": "权重：{chosen}",
  step: "第 {n} / {m} 步",
  left: "约剩 {time}",
  "left.means": "整个运行：加载、采样、切换，以及已知时间的解码",
  loading: "{what}：{done} / {total}",
  "loading.rate": "{what}：{done} / {total}，{rate} MB/s",
  took: "用时 {time}",
  pace: "{pace} 秒/步",
  memory: "{used} / {total}，峰值 {peak}",
  split: "高噪声 {high} 步 + 低噪声 {low} 步，在时间步 {timestep} 切换",
  "split.one": "{steps} 步，全部{expert}",
  "split.part": "运行 {all} 步中的 {steps} 步",
  curve: "{steps} 步的噪声水平：{split}",
  report: "报告",
  copy: "复制",
  copied: "已复制",
  "on.host": "主机内存 {bytes}",
  time: "时间",
  speed: "速度",
  peak: "内存峰值",
  predicted: "预计 {bytes}",
  switch: "专家切换",
  beyond: "比普通步骤多 {time}",
  choices: "运行了什么，为什么",
  "speed.line": "{steps} 步，{pace} 秒/步，{tflops} TFLOP/s",
  "not.chosen": "未选用",
  instead: "代替 {asked}",
  machine: "{name}，可用 {free} / {total}",
  for: "{size}，{model}",
  "estimate.time": "采样约 {time}",
  "estimate.memory": "最多 {bytes}",
  "estimate.all": "总计约 {time}",
  "estimate.learned": "根据此机器上已完成的运行得出：{runs}",
  estimate: "估计",
  "choices.here": "选择与原因",
  "plan.empty": "运行工作流即可看到计划。",
};

const LANGUAGES = { en: EN, zh: ZH, "zh-TW": ZH };

/** The words for `key`, with `{name}` replaced by `values.name`. */
export function label(key, values = {}) {
  const words = LANGUAGES[locale()]?.[key] ?? EN[key] ?? key;
  return words.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

/** "26 high + 14 low, switch at timestep 875". */
export function splitText({ split, boundary, num_steps: all }) {
  const high = split.filter((expert) => expert === "high").length;
  const low = split.length - high;
  const text =
    high && low
      ? label("split", { high, low, timestep: Number((boundary * 1000).toFixed(1)) })
      : label("split.one", { steps: split.length, expert: label(`expert.${split[0]}`).toLowerCase() });
  return all && all !== split.length ? `${text} (${label("split.part", { steps: split.length, all })})` : text;
}
