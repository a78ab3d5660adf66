//! The opcodes that the emulator knows.

/// Every opcode that is accepted; any other is an error. Each has a conformance case, except the two that end a
/// program.
#[rustfmt::skip]
pub const OPCODES: [&str; 97] = [
    "abs", "activemask", "add", "addc", "and", "applypriority", "atom", "bar", "barrier", "bfe", "bfi", "bfind",
    "bmsk", "bra", "brev", "brkpt", "brx", "call", "clz", "cnot", "copysign", "cos", "cp", "createpolicy", "cvt", "cvta",
    "discard", "div", "dp2a", "dp4a", "elect", "ex2", "exit", "fence", "fma", "griddepcontrol", "isspacep",
    "ld", "ldmatrix", "ldu", "lg2", "lop3", "mad", "mad24", "madc", "match", "max", "membar", "min", "mma",
    "mov", "movmatrix", "mul", "mul24", "nanosleep", "neg", "not", "or", "pmevent", "popc", "prefetch",
    "prefetchu", "prmt", "rcp", "red", "redux", "rem", "ret", "rsqrt", "sad", "selp", "set", "setp", "shf",
    "shfl", "shl", "shr", "sin", "slct", "sqrt", "st", "stmatrix", "sub", "subc", "tanh", "testp", "trap",
    "vabsdiff", "vadd", "vmax", "vmin", "vote", "vset", "vshl", "vshr", "vsub", "xor",
];
