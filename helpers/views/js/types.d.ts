// Types that several modules of the widgets' pages share. They are for checks only; no page loads them.

type Attributes = Record<string, string | number | boolean | null | undefined | ((event: any) => void)>;

interface Link {
  page: { root: HTMLElement; message: HTMLElement } | null;
  send(command: string, values?: Record<string, unknown>, buffers?: ArrayBuffer[]): void;
  answered(): void;
  pending(): boolean;
  goOn(): void;
}

type Send = Link["send"];

interface Scale {
  low: number;
  high: number;
  colors: string[];
  log?: boolean;
}

type Box = [number, number, number, number];

interface TextLook {
  align: "left" | "right" | "center";
  color: string;
  size: number;
  bold?: boolean;
  turned?: boolean;
}

interface Pen {
  image(source: CanvasImageSource, part: Box, place: Box, smooth: boolean): void;
  curve(x1: number, y1: number, x2: number, y2: number, color: string, alpha: number, width: number): void;
  box(x: number, y: number, wide: number, high: number, color: string, line: number): void;
  fill(x: number, y: number, wide: number, high: number, color: string, alpha: number): void;
  text(string: string, x: number, y: number, look: TextLook): void;
  moved(x: number, y: number, act: () => void): void;
}

// attention_explorer (helpers/views/attention.py)

interface AttentionView {
  tokens: string[];
  queries: number[];
  layers: number[];
  planes: string[];
  glance: DataView;
  side: [number, number];
  row: number;
  plane: number;
  first: DataView;
  patches: number[] | null;
  grid: [number, number] | null;
  picture: DataView | null;
  colors: string[];
}

type Side = "query" | "key";

interface Spot {
  side: Side;
  query: number;
  key: number;
}

interface Area {
  q0: number;
  q1: number;
  k0: number;
  k1: number;
}

interface Plane {
  bytes: Uint8Array;
  exact: boolean;
  picture: HTMLCanvasElement;
  pairs: [number, number, number][];
}

interface Layers {
  small: Uint8Array | null;
  begin(): Promise<void>;
  want(row: number): void;
  touch(row: number): void;
  arrive(content: any, buffers: DataView[]): Promise<void>;
  bytesOf(row: number, plane: number): { bytes: Uint8Array; exact: boolean };
  isAsked(row: number): boolean;
  stop(): void;
}

interface Scene {
  view: AttentionView;
  palette: number[][];
  layers: Layers;
  row: number;
  plane: number;
  chosen: Spot;
  over: Spot | null;
  area: Area;
  drag: { from: Cell; to: Cell } | null;
  shown: Plane | null;
  glance: HTMLCanvasElement | null;
  photo: ImageBitmap | null;
}

interface Cell {
  query: number;
  key: number;
}

type Theme = Record<"ink" | "muted" | "paper" | "rule" | "shade" | "query" | "key", string>;

// hidden_state_explorer (helpers/views/hidden_states_page.py)

type Coloring = "token" | "probability" | "entropy" | "norm" | "change" | "cosine";
type Numbers = (number | null)[][];

interface StatesGrid extends Record<Exclude<Coloring, "token">, Numbers | null> {
  name: string;
  first: number;
  length: number;
  tokens: string[];
  says: string[][] | null;
  norm: Numbers;
  change: Numbers;
  cosine: Numbers;
}

interface StatesDifference extends Record<Coloring, Numbers | null> {
  first: number;
  tokens: string[];
  tokens_before: string[];
  says: string[][] | null;
}

interface Candidate {
  id: number;
  label: string;
  p: number[];
  text: string[];
}

interface StatesCell {
  grid: number;
  layer: number;
  position: number;
  token: string;
  patch: { position: number; token: string } | null;
  top: { id: number; label: string; p: number; text: string }[];
  no_top: string;
  asked: { id: number | null; label: string };
  neighbours: { grid: number; position: number; label: string; cosine: number; centred: number }[];
  writers: Writers | null;
  no_writers: string;
}

interface Writers {
  table: number[][];
  best: [number, number][];
  embedding: number;
  put_in: number;
  rest: number;
  total: number;
}

interface StatesView {
  prompt: string;
  title: string;
  other: string;
  beside: "" | "other" | "changed";
  choices: ("" | "other" | "changed")[];
  layers: number;
  heads: number;
  grids: StatesGrid[];
  difference: StatesDifference | null;
  no_lens: string;
  window: { size: number; after: number; farthest: number };
  most_entropy: number;
  cell: StatesCell;
  changes: { text: string; scale: number | null; kind: string }[];
  ablated: [number, number][];
  code: string;
  candidates: Candidate[];
  texts: string[];
  strength: number;
  colors: string[];
  differences: string[];
  message: string;
}

interface GridLayout {
  name: string;
  grid: number;
  first: number;
  tokens: string[];
  texts: string[][];
  values: Numbers | null;
  kind: Coloring | "apart" | "difference";
}

interface GridPanel extends GridLayout {
  wide: number;
  scale: Scale | null;
  svg: SVGSVGElement;
}

interface Place {
  grid: number;
  layer: number;
  position: number;
}

// generation_stepper and sampling_explorer (helpers/views/stepper.py, sampling.py)

interface ExplorerView {
  kind: "stepper" | "sampling";
  candidates: {
    id: number;
    label: string;
    raw: number | null;
    rawText: string;
    final: number | null;
    finalText: string;
    chosen: boolean;
  }[];
  stages: string[];
  sliders: { name: string; value: number; min: number; max: number; step: number; neutral: number }[];
  sampling: boolean;
  chips: { label: string; id: number; special: boolean; step: number; by: "prompt" | "you" | "model" }[];
  text: string;
  inputs: [string, string, string][];
  index: number;
  last: number;
  forward: boolean;
  token: string;
  stopped: string;
  message: string;
}

// kv_cache_explorer (helpers/views/cache.py)

interface CacheView {
  first: number;
  length: number;
  fresh: number;
  tokens: { label: string; id: number; special: boolean; step: number }[];
  keys: Numbers;
  values: Numbers;
  shape: number[];
  layers: number;
  bytes: number;
  growth: number;
  index: number;
  last: number;
  forward: boolean;
  token: string;
  colors: string[];
  message: string;
}

// sharpen_heads (helpers/views/sharpen.py)

interface SharpenView {
  heads: string;
  temperature: number;
  limits: [number, number];
  parts: { name: string; rows: [string, number, number, string, string][] }[];
  message: string;
}

// image_chat (helpers/views/image_chat_page.py)

interface ChatTurn {
  question: string;
  fresh: boolean;
  text: string;
  words: { text: string; pick: boolean }[];
  stopped: string;
  tokens: number;
}

interface ChatView {
  sees: boolean;
  turns: ChatTurn[];
  answering: boolean;
  notice: string;
  picture: string;
  picked: [number, number] | null;
  word: string;
  heat: number[][] | null;
  brightest: [number, number] | null;
  share: number;
  shares: number[];
  layer: number | null;
  head: number | null;
  moment: "choosing" | "reading";
  message: string;
}

interface ChatStill {
  gallery: { name: string; thumbnail: string }[];
  grid: number;
  layers: number;
  heads: number;
  palette: { name: string; color: string }[];
  outlines: Record<string, [number, number][]>;
  places: string[];
  questions: string[];
  colors: string[];
}

interface Mark {
  kind: string;
  color: string;
  size?: number;
  x?: number;
  y?: number;
  points?: [number, number][];
}
