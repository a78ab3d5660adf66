//! The decoded form of a kernel: dense instructions over register rows.
//!
//! A *row* is one register of all 32 lanes of a warp. There are three files of rows: 32 bits (also for narrower types,
//! whose upper bits are zero), 64 bits, and predicates (a bit a lane). Constants and special registers are rows too,
//! filled before the kernel starts, so that every operand of every instruction is a row.

use crate::counters::Class;
use crate::matrix::Mma;

/// Which register file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum File {
    R32,
    R64,
    Pred,
}

/// A register before rows are assigned, or a row after: a file and an index in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Reg {
    pub(crate) file: File,
    pub(crate) index: u32,
}

/// Operations. Those that kernels spend their time in have an arm of their own in the interpreter; `Lane` calls a
/// function for each lane and `Side` covers everything with more operands or its own rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Op {
    Mov32,
    Mov64,
    MovP,
    AddF,
    SubF,
    MulF,
    FmaF,
    MinF,
    MaxF,
    NegF,
    AbsF,
    RcpF,
    SqrtF,
    DivF,
    Add32,
    Sub32,
    Mul32,
    Mad32,
    MulHiU32,
    MulHiS32,
    And32,
    Or32,
    Xor32,
    Not32,
    Neg32,
    Shl32,
    ShrU32,
    ShrS32,
    MinS32,
    MaxS32,
    MinU32,
    MaxU32,
    /// `x` is the table.
    Lop3,
    MulWideS,
    MulWideU,
    MadWideS,
    MadWideU,
    Add64,
    Sub64,
    Mul64,
    Mad64,
    And64,
    Or64,
    Xor64,
    Shl64,
    ShrU64,
    ShrS64,
    Sext,
    Zext,
    Trunc,
    S32ToF,
    U32ToF,
    Sel32,
    Sel64,
    /// `d = a cmp b`, `x` a [`Compare`] as u32.
    SetS32,
    SetU32,
    SetF32,
    SetS64,
    SetU64,
    SetF64,
    AndP,
    OrP,
    XorP,
    NotP,
    AddD,
    SubD,
    MulD,
    FmaD,
    /// `x` indexes the kernel's sides, for all below.
    Lane,
    Load,
    Store,
    Side,
    /// `x` indexes the kernel's terminators.
    Branch,
    Switch,
    Exit,
}

/// Comparisons; `U` forms are true if an operand is NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

/// No guard.
pub(crate) const UNGUARDED: u16 = u16::MAX;

/// One instruction, 16 bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inst {
    pub(crate) op: Op,
    /// Predicate row times two, plus one if negated.
    pub(crate) guard: u16,
    pub(crate) d: u16,
    pub(crate) a: u16,
    pub(crate) b: u16,
    pub(crate) c: u16,
    pub(crate) x: u32,
}

/// An operation on one lane: the instruction's constant, then the operands, zero-extended.
pub(crate) type LaneFn = fn(u32, [u64; 3]) -> u64;

/// Memory that an instruction accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    /// To be found from the address.
    Generic,
    Global,
    Shared,
    Local,
    /// The kernel's parameters.
    Param,
}

/// A load or store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub(crate) space: Space,
    /// Bytes of an element: 1, 2, 4 or 8.
    pub(crate) bytes: u32,
    /// Elements a lane: 1, 2, 4 or 8.
    pub(crate) count: u32,
    /// Loads: sign-extend to this many bytes; zero: zero-extend.
    pub(crate) extend: u32,
    pub(crate) offset: i64,
    /// Whether a base register is the first source.
    pub(crate) based: bool,
    /// Whole words in 32-bit registers: no extension, no pairs.
    pub(crate) plain: bool,
}

/// Atomic operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtomOp {
    Add,
    AddF32,
    AddF64,
    AddF16x2,
    AddBf16x2,
    MinU,
    MaxU,
    MinS,
    MaxS,
    Inc,
    Dec,
    Exchange,
    Compare,
    And,
    Or,
    Xor,
}

/// `shfl` modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShuffleMode {
    Up,
    Down,
    Butterfly,
    Index,
}

/// `vote` modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VoteMode {
    All,
    Any,
    Uniform,
    Ballot,
}

/// What a reduction combines with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReduceOp {
    Add,
    MinU,
    MaxU,
    MinS,
    MaxS,
    And,
    Or,
    Xor,
}

/// What a barrier combines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BarrierReduce {
    None,
    Popc,
    And,
    Or,
}

/// Instructions with more operands than [`Inst`] holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SideKind {
    Lane(LaneFn, u32),
    Access(Access),
    /// Sources: base (if based), value, compare value (if compare).
    Atomic {
        op: AtomOp,
        access: Access,
    },
    /// Sources: shared address, global address, then the source size if `sized`.
    CopyAsync {
        bytes: u32,
        shared_offset: i64,
        global_offset: i64,
        sized: bool,
    },
    CommitGroup,
    /// Waits until at most this many groups of the lane are pending; `u32::MAX`: until nothing is.
    WaitGroup(u32),
    LoadMatrix {
        transposed: bool,
        offset: i64,
    },
    StoreMatrix {
        transposed: bool,
        offset: i64,
    },
    MoveMatrix,
    Mma(Mma),
    /// Destinations: value, and predicate if there are two. Sources: value, lane, clamp, members.
    Shuffle(ShuffleMode),
    /// Sources: predicate, members.
    Vote(VoteMode),
    /// Sources: value, members; `all` has a second destination.
    Match {
        all: bool,
    },
    Reduce(ReduceOp),
    ActiveMask,
    /// Destinations: leader, predicate. Sources: members.
    Elect,
    WarpSync,
    /// A fence that reaches other blocks.
    Fence,
    /// Sources: barrier number, count (if `counted`), predicate (if it reduces).
    Barrier {
        reduce: BarrierReduce,
        aligned: bool,
        arrive: bool,
        counted: bool,
    },
    /// A check that the only source, a shadow, is true. The numbers index [`Program::registers`]: the register, and the
    /// one that its missing value comes from.
    Written {
        register: u32,
        root: u32,
    },
    Trap,
    /// Instructions the warp has executed.
    Clock,
    Nothing,
}

/// A side: the operation and its registers.
#[derive(Clone, Debug)]
pub(crate) struct Side {
    pub(crate) kind: SideKind,
    pub(crate) dst: Box<[Reg]>,
    pub(crate) src: Box<[Reg]>,
}

/// The end of a basic block.
#[derive(Clone, Debug, Default)]
pub(crate) struct Terminator {
    /// Where lanes go that take the branch; for a switch, one target a value.
    pub(crate) targets: Vec<u32>,
    /// Where the others go.
    pub(crate) next: u32,
}

/// Special registers that are rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Tid(usize),
    Ntid(usize),
    Ctaid(usize),
    Nctaid(usize),
    Lane,
    Warp,
    Warps,
    /// Masks of the lanes that are equal, below, below or equal, above, above or equal.
    MaskEq,
    MaskLt,
    MaskLe,
    MaskGt,
    MaskGe,
    /// Where dynamic shared memory begins, its size, and the size of all shared memory.
    DynamicShared,
    DynamicSize,
    TotalShared,
}

/// What a row holds before the kernel starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Preset {
    Const(u64),
    Special(Special),
}

/// Where an instruction stands in its sources.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Origin {
    /// Index of the instruction in the kernel's texts.
    pub(crate) text: u32,
    pub(crate) line: u32,
    pub(crate) source: (u32, u32),
}

/// Parameters of a kernel: name, offset and bytes of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// The name in the PTX.
    pub name: String,
    /// Where it begins in the packed parameters.
    pub offset: u32,
    /// Its size.
    pub bytes: u32,
}

/// A kernel ready to run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) parameter_bytes: u32,
    pub(crate) max_threads: u32,
    pub(crate) shared_bytes: u32,
    pub(crate) local_bytes: u32,
    /// Registers that the PTX declares.
    pub(crate) declared_registers: u32,
    pub(crate) rows32: u32,
    pub(crate) rows64: u32,
    pub(crate) rows_pred: u32,
    pub(crate) presets: Vec<(Reg, Preset)>,
    /// Predicate rows that are false when a block starts; each says whether a register was written.
    pub(crate) unwritten: Vec<u32>,
    /// The names of the registers that the PTX declares.
    pub(crate) registers: Vec<String>,
    pub(crate) code: Vec<Inst>,
    pub(crate) origins: Vec<Origin>,
    pub(crate) texts: Vec<String>,
    pub(crate) sides: Vec<Side>,
    pub(crate) terminators: Vec<Terminator>,
    /// Instructions of each kind in each basic block, in the order of the terminators.
    pub(crate) block_classes: Vec<[u32; Class::COUNT]>,
    /// Instructions of each basic block.
    pub(crate) block_sizes: Vec<u32>,
    /// log2 of the smallest access to shared memory: the grain of race checks.
    pub(crate) shared_grain: u32,
    pub(crate) files: std::collections::HashMap<u32, String>,
}
