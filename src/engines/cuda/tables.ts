/** Small tables a launch reads, kept on the device for as long as the host object they were made from lives. */

import type { Problem } from '../../problem/problem.ts';
import type { BlockRuns } from '../../problem/ranges.ts';
import type { Pool } from './driver/memory.ts';
import type { Transfers } from './driver/transfer.ts';

export interface RunTable {
  readonly rowStart: number;
  readonly runs: number;
  /** Whether the last row of a head has more blocks than its first: it should start first. */
  readonly reverse: boolean;
}

export class Tables {
  private readonly pool: Pool;
  private readonly transfers: Transfers;
  private readonly runTables = new WeakMap<BlockRuns, RunTable>();
  private readonly owned = new WeakMap<object, Int32Array>();
  private readonly arrays = new WeakMap<Int32Array, number>();
  private readonly finished: FinalizationRegistry<number>;

  constructor(pool: Pool, transfers: Transfers) {
    this.pool = pool;
    this.transfers = transfers;
    this.finished = new FinalizationRegistry((address) => pool.release(address));
  }

  runs(runs: BlockRuns): RunTable {
    let table = this.runTables.get(runs);
    if (table === undefined) {
      table = { rowStart: this.array(runs.rowStart), runs: this.array(runs.runs), reverse: isHeavierAtEnd(runs) };
      this.runTables.set(runs, table);
    }
    return table;
  }

  sequences(problem: Problem): number {
    return this.array(problem.sequences);
  }

  pages(problem: Problem): number {
    return problem.kv.kind === 'paged' ? this.array(problem.kv.table) : 0;
  }

  /** At least `count` words that are zero at first, for as long as `owner` lives; each use leaves them zero. */
  counters(owner: object, count = 4): number {
    let words = this.owned.get(owner);
    if (words === undefined || words.length < count) {
      words = new Int32Array(2 ** Math.ceil(Math.log2(Math.max(count, 4))));
      this.owned.set(owner, words);
    }
    return this.array(words);
  }

  /** The device copy of an array that does not change any more. */
  array(data: Int32Array): number {
    const known = this.arrays.get(data);
    if (known !== undefined) return known;
    const address = this.pool.allocate(Math.max(data.byteLength, 16));
    this.transfers.upload(address, data);
    this.arrays.set(data, address);
    this.finished.register(data, address);
    return address;
  }
}

function isHeavierAtEnd({ rows, rowStart, runs }: BlockRuns): boolean {
  if (rows < 2) return false;
  const blocks = (row: number): number => {
    let n = 0;
    for (let i = rowStart[row]; i < rowStart[row + 1]; i++) n += runs[i * 3 + 1] - runs[i * 3];
    return n;
  };
  return blocks(rows - 1) > blocks(0);
}
