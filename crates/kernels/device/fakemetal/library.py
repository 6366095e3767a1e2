#!/usr/bin/env python3
"""library.py IN.metal OUT.so: compiles the text of a Metal library for the CPU, for metal.cpp.

Macros are expanded first; then kernels, their attributes and group memory are found by pattern and not by a parser, which
is enough for kernels that begin with `kernel void name(` or `[[kernel]] void name(`, and for their instantiations under
[[host_name]]. FAKEMETAL_CXX is the compiler, a clang.
"""
import os, re, subprocess, sys, tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
CXX = os.environ.get("FAKEMETAL_CXX", "clang++").split()
DEFINES = ["-D__METAL_VERSION__=310", "-D__METAL__", "-D__HAVE_BFLOAT__"]
HEADERS = """metal_stdlib metal_simdgroup metal_simdgroup_matrix metal_atomic metal_math metal_common metal_compute
             metal_limits metal_types metal_integer metal_pack""".split()
# What an argument is: buffers are 0 to 30 (and 1000 if they may be unset), group memory from 31 on, what the hardware gives
# from 100 on.
GIVEN = """thread_position_in_grid thread_position_in_threadgroup threadgroup_position_in_grid threads_per_threadgroup
           threadgroups_per_grid threads_per_grid thread_index_in_threadgroup thread_index_in_simdgroup
           simdgroup_index_in_threadgroup threads_per_simdgroup simdgroups_per_threadgroup
           dispatch_threads_per_threadgroup thread_execution_width""".split()

PRELUDE = r"""
#include "fakemetal/metal_stdlib"
#include <utility>
#undef KV_SHARED
namespace msl {
struct Place { void *const *arguments; const engine::Ids *ids; const unsigned *shape; };
inline uint3 given(int code, const Place &at) {
  const unsigned *s = at.shape, *full = s + 3, *n = s + 6, *all = s + 9, *g = at.ids->group, t = at.ids->tid;
  const unsigned p[3] = {t % s[0], t / s[0] % s[1], t / s[0] / s[1]};
  switch (code) {
  case 100: return uint3(g[0] * full[0] + p[0], g[1] * full[1] + p[1], g[2] * full[2] + p[2]);
  case 101: return uint3(p[0], p[1], p[2]);
  case 102: return uint3(g[0], g[1], g[2]);
  case 103: return uint3(s[0], s[1], s[2]);
  case 104: return uint3(n[0], n[1], n[2]);
  case 105: return uint3(all[0], all[1], all[2]);
  case 106: return uint3(t, 0, 0);
  case 107: return uint3(t % 32, 0, 0);
  case 108: return uint3(t / 32, 0, 0);
  case 110: return uint3((s[0] * s[1] * s[2] + 31) / 32, 0, 0);
  case 111: return uint3(full[0], full[1], full[2]);
  default: return uint3(32, 0, 0);
  }
}
inline void *at(int code, const Place &place) {
  alignas(16) static char none[4096];
  void *set = place.arguments[code % 1000];
  return set ? set : none;
}
template <class A> inline A argument(int code, const Place &place) {
  if constexpr (std::is_pointer_v<A>) return (A)at(code, place);
  else if constexpr (std::is_reference_v<A>) return *(std::remove_reference_t<A> *)at(code, place);
  else {
    const uint3 v = given(code, place);
    if constexpr (traits<A>::n == 3) { A r; r[0] = v.x, r[1] = v.y, r[2] = v.z; return r; }
    else if constexpr (traits<A>::n == 2) { A r; r[0] = v.x, r[1] = v.y; return r; }
    else return (A)v.x;
  }
}
template <class... A, size_t... I>
inline void call(void (*f)(A...), const int *codes, const Place &place, std::index_sequence<I...>) {
  f(argument<A>(codes[I], place)...);
}
template <class... A> inline void call(void (*f)(A...), const int *codes, const Place &place) {
  call(f, codes, place, std::index_sequence_for<A...>());
}
struct Kernel {
  const char *name;
  void (*run)(void *const *, const engine::Ids *, const unsigned *);
  const int *args;
  const char *uses;
  int n;
};
struct Constant { int index; void *p; size_t n; };
} // namespace msl
#define EXPORTED extern "C" __attribute__((visibility("default"))) extern const
"""


def run(*command, **options):
    result = subprocess.run(command, capture_output=True, text=True, **options)
    return result.returncode, result.stdout, result.stderr


def balanced(text, at, open_, close):
    """the index just past the bracket that closes the one at `at`"""
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] == open_) - (text[i] == close)
        if depth == 0:
            return i + 1
    raise SystemExit("unbalanced " + open_)


def split(parameters):
    depth, found = 0, [""]
    for c in parameters:
        depth += (c in "([{<") - (c in ")]}>")
        if c == "," and depth == 0:
            found.append("")
        else:
            found[-1] += c
    return found if found[-1].strip() else found[:-1]


def arguments(parameters):
    """what each parameter is, and what its type allows: 0 is constant, 1 memory that is read, 2 memory that is written"""
    codes, uses, following = [], [], 0
    for p in split(parameters):
        buffer = re.search(r"\bbuffer\((\d+)\)", p)
        group = re.search(r"\[\[\s*threadgroup\((\d+)\)", p)
        given = [100 + i for i, name in enumerate(GIVEN) if re.search(r"\[\[\s*%s\s*\]\]" % name, p)]
        code = int(buffer[1]) if buffer else 31 + int(group[1]) if group else given[0] if given else following
        if code < 31:
            following = code + 1
            code += 1000 * ("function_constant" in p)
        codes.append(code)
        uses.append((2 - bool(re.search(r"\bconst\b", p))) * bool(re.search(r"\bdevice\b", p)))
    return codes, uses


def instantiations(text):
    """the text without explicit instantiations, and their names and expressions"""
    found = []

    def take(match):
        name = "".join(re.findall(r'"([^"]*)"', match[1]))  # adjacent literals are one
        body = match[2].strip()
        typed = re.match(r"decltype\((.*)\)\s*([\w:]+\s*<.*>)$", body, re.S)
        if typed:
            found.append((name, typed[1].strip()))
        else:
            body = body[: body.index("(")] if re.match(r"void\b", body) else body
            found.append((name, re.sub(r"^\S+\s+", "", body, count=1).strip()))
        return ""

    kind = r"(?:\[\[\s*kernel\b[^\]]*\]\]|kernel)"
    named = r'template\s*\[\[\s*host_name\(((?:\s*"[^"]*"\s*)+)\)\s*\]\]\s*'
    return re.sub(named + kind + r"\s+([^;]*);", take, text), found


def group_memory(text):
    """variables of a group become references into the engine's"""
    count = 0

    def take(match):
        nonlocal count
        count += 1
        kind, name, sizes = match[1], match[2], match[3].strip()
        return (
            f"typedef {kind} {name}_t{count}_ {sizes}; static char {name}_k{count}_; {name}_t{count}_ &{name} = "
            f"*({name}_t{count}_ *)engine::group_memory(&{name}_k{count}_, sizeof({name}_t{count}_));"
        )

    declared = r"(?<![\w(,] )\bthreadgroup\s+(?!_)((?:const\s+)?[\w:]+(?:\s*<[^;{}()]*>)?)\s+(\w+)\s*((?:\[[^\];]*\]\s*)*)\s*;"
    return re.sub(declared, take, text)


def plain(text):
    """forms that are not C++ in ones that are"""
    text = re.sub(r"\[\[\s*kernel\b[^\]]*\]\]", "kernel", text)
    # a method's own address space
    text = re.sub(r"\)\s*(?:const\s+)?(?:thread|threadgroup|device|constant)\s*(?==|:|\{)", ") ", text)
    # a GNU range
    ranged = r"(\w+)\s*\[([^\]]+)\]\s*=\s*\{\s*\[\s*0\s*\.\.\.[^\]]*\]\s*=\s*([^{};]*)\};"
    text = re.sub(ranged, r"\1[\2]; for (auto &e_ : \1) e_ = \3;", text)
    text = re.sub(r"\bstatic_cast\s*<", "msl::cast<", text)
    cast = r"(?<![\w>)])\(((?:float|half|int|uint|short|ushort|char|uchar)[234])\)(?=\s*[\w(*])"
    text = re.sub(cast, r"msl::to<\1>{} ->* ", text)
    return re.sub(r"\[\[[^\]]*\]\]", "", text)


def translated(path):
    with tempfile.TemporaryDirectory() as empty:
        for header in HEADERS:
            open(os.path.join(empty, header), "w").close()
        status, text, said = run(*CXX, "-E", "-P", "-x", "c++", *DEFINES, "-I", empty, path)
    if status:
        raise SystemExit(said)
    text = re.sub(r"(^|\n)\s*#pragma[^\n]*", "\n", text)
    text, kernels = instantiations(text)
    signatures = {}
    for match in re.finditer(r"(template\s*<[^;{}]*?>\s*)?(?:\[\[\s*kernel\b[^\]]*\]\]|\bkernel)\s+void\s+(\w+)\s*\(", text):
        end = balanced(text, match.end() - 1, "(", ")")
        signatures[match[2]] = arguments(text[match.end() : end - 1])
        if not match[1]:
            kernels.append((match[2], match[2]))
    constants = re.findall(r"\bconstant\s+\w+\s+(\w+)\s*\[\[\s*function_constant\((\d+)\)\s*\]\]", text)
    text = re.sub(r"\bconstant\s+(\w+\s+\w+\s*\[\[\s*function_constant)", r"\1", text)  # set before a dispatch
    end, table = "", ""
    for n, (name, expression) in enumerate(kernels):
        codes, uses = signatures[re.match(r"[\w:]+", expression)[0].split("::")[-1]]
        end += f"static const int codes_{n}[] = {{{', '.join(map(str, codes)) or '0'}}};\n"
        end += f"static const char uses_{n}[] = {{{', '.join(map(str, uses)) or '0'}}};\n"
        end += f"static void run_{n}(void *const *a, const engine::Ids *i, const unsigned *s) {{ "
        end += f"msl::call(&{expression}, codes_{n}, msl::Place{{a, i, s}}); }}\n"
        table += f'{{"{name}", run_{n}, codes_{n}, uses_{n}, {len(codes)}}}, '
    end += f"EXPORTED msl::Kernel msl_kernels[] = {{{table}{{nullptr, nullptr, nullptr, nullptr, 0}}}};\n"
    values = "".join(f"{{{index}, (void *)&{name}, sizeof {name}}}, " for name, index in constants)
    end += f"EXPORTED msl::Constant msl_constants[] = {{{values}{{0, nullptr, 0}}}};\n"
    return PRELUDE + plain(group_memory(text)) + "\n" + end


def without_overload(text, said):
    """overloads that differ in address spaces alone are one here: the second goes"""
    kinds = "redefinition of|constructor cannot be redeclared|class member cannot be redeclared"
    match = re.search(rf":(\d+):(\d+): error: (?:{kinds})", said)
    if not match:
        raise SystemExit(said)
    at = sum(len(line) + 1 for line in text.split("\n")[: int(match[1]) - 1]) + int(match[2]) - 1
    start = max(text.rfind(c, 0, at) for c in ";}") + 1
    brace, semicolon = text.index("{", at), text.index(";", at)
    if semicolon < brace:
        end = semicolon + 1
    else:
        end = balanced(text, brace, "{", "}")
        end += text[end:].startswith(";")
    return text[:start] + text[end:]


def main(source, output):
    text = translated(source)
    fresh = f"{output}.{os.getpid()}"
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off",
             "-ferror-limit=1", "-w"]
    while True:
        with open(fresh + ".cpp", "w") as file:
            file.write(text)
        status, _, said = run(*CXX, *flags, *DEFINES, "-I", os.path.dirname(HERE), fresh + ".cpp", "-o", fresh)
        if not status:
            break
        text = without_overload(text, said)
    os.remove(fresh + ".cpp")
    os.rename(fresh, output)


main(*sys.argv[1:3])
