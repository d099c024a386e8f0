/** Compares the hand-written types with the server's at compile time: it does not compile if their fields differ. */

import type * as ours from "../src/types.js";
import type * as wire from "../src/wire.js";

type CamelName<Name> = Name extends `${infer Head}_${infer Tail}` ? `${Head}${Capitalize<CamelName<Tail>>}` : Name;
type Camel<T> = T extends readonly (infer Part)[]
  ? Camel<Part>[]
  : T extends object
    ? { [Name in keyof T as CamelName<Name>]: Camel<T[Name]> }
    : T;
type Same<A, B> = [A] extends [B] ? ([B] extends [A] ? true : false) : false;
/** Without the index signature that accepts later options. */
type Known<T> = { [Name in keyof T as string extends Name ? never : Name]: T[Name] };

/** The client has no call for inspect, which alone has this option. */
type Options = Omit<wire.Options, "token_scores">;

type Checks = [
  Same<Camel<wire.ScoreEntry>, ours.ScoreEntry>,
  Same<keyof Camel<wire.ScoreEntry>, keyof ours.ScoreEntry>,
  Same<Camel<wire.ScoreResponse>, Omit<ours.ScoreResult, "requestId">>,
  Same<keyof Camel<wire.ScoreResponse>, Exclude<keyof ours.ScoreResult, "requestId">>,
  Same<Camel<wire.ModelInfo>, ours.ModelInfo>,
  Same<keyof Camel<wire.ModelInfo>, keyof ours.ModelInfo>,
  Same<Camel<wire.LoadProgress>, ours.LoadProgress>,
  Same<Camel<Options>, Known<ours.ServerOptions>>,
  Same<keyof Camel<Options>, keyof Known<ours.ServerOptions>>,
  Same<keyof wire.Item, keyof ours.Item>,
  Same<keyof wire.EncodedItem, Exclude<keyof ours.EncodeResult, "requestId" | "numTokens">>,
  Same<keyof Camel<wire.EncodeParams> | keyof ours.WaitOptions, keyof ours.EncodeOptions>,
  Same<Exclude<keyof wire.ScoreRequest, "query" | "items"> | keyof ours.WaitOptions, keyof ours.ScoreOptions>,
  Same<NonNullable<wire.EncodeParams["output_types"]>[number], ours.OutputType>,
  Same<NonNullable<wire.EncodeParams["output_dtype"]>, ours.OutputDtype>,
];
type AllTrue<List extends true[]> = List;
export type Checked = AllTrue<Checks>;
