import assert from 'node:assert/strict';
import test from 'node:test';
import { accounts, csvRows } from '../../bench/gpu/stalls.ts';

const PAGE = `==PROF== whatever
"Kernel Name","one, with ""quotes""",
"Address","Source","# Samples","stall_barrier","stall_long_sb","stall_wait","stall_wait (Not Issued)"
"0x0","      MOV R1, R2","10","0","0","10","9"
"0x10","      USETMAXREG.DEALLOC.CTAPOOL 0x20","0","0","0","0","0"
"0x20","@!P0  BRA 0x40","1,000","0","1,000","0","0"
"0x30","      USETMAXREG.TRY_ALLOC.CTAPOOL UP0, 0xa0","0","0","0","0","0"
"0x40","      MUFU.EX2 R1, R1","30","0","0","30","0"
"0x50","@P0 WARPGROUP.DEPBAR.LE gsb0, 0x0","20","20","0","0","0"
"0x60","      UMOV UR4, UR5","25","25","0","0","0"
"0x70","@!P0  BRA 0x40","15","0","15","0","0"
"Kernel Name","two",
"Address","Source","# Samples","stall_wait"
"0x0","      FFMA R1, R2, R3, R4","4","4"
`;

test('samples are accounted by what instructions are for, data movers apart', () => {
  const [one, two] = accounts(PAGE);
  assert.deepEqual([one.samples, one.moving], [1100, Number((1000 / 1100).toFixed(4))]);
  assert.deepEqual(one.shares, {
    exponentials: 0.3,
    'turns of the warpgroups': 0.25,
    products: 0.2,
    'waiting for copies': 0.15,
    'addresses and descriptors': 0.1,
  });
  assert.equal(one.hottest[0].reason, 'long_sb');
  assert.deepEqual(two.shares, { 'scaling and rescaling': 1 });
});

test('cells of a page may hold commas and quotes', () => {
  assert.deepEqual(csvRows('"a, b","","c"\nnot a row\n'), [['a, b', '', 'c']]);
});
