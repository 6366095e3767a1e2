"""The strict check of the Metal spelling: parses programs by clang's C++ for OpenCL, which has the address spaces of
Metal, and looks for pointers without one, which clang would take for pointers to private memory.

    check.py LIBCLANG FOLDER PROGRAM...     prints what is wrong, one line each; LIBCLANG is a folder of Python's libclang
"""

import re
import sys

libclang, folder, *programs = sys.argv[1:]
sys.path.insert(0, libclang)
from clang import cindex  # noqa: E402

FLAGS = [
    "-x", "clcpp", "-cl-std=clc++2021", "-cl-no-stdinc", "--target=spir64", "-D__METAL_VERSION__=310", "-I" + folder,
    "-Xclang", "-cl-ext=-all,+cl_khr_fp16,-__opencl_c_generic_address_space", "-Wdouble-promotion",
    "-Wno-unknown-attributes", "-Wno-unknown-pragmas", "-Wno-unused",
]  # fmt: skip
POINTER = re.compile(r"((?:\w+\s+)*?)\b(?:float|half|bool|u?int|ushort|uchar|kv_t|kv_size|T|Kv\w+)\s*[*&]\s*\w+\s*[,)=;]")
SPACES = ("KV_DEVICE", "KV_CONSTANT", "KV_GROUP", "KV_THREAD")

index = cindex.Index.create()
for program in programs:
    for diagnostic in index.parse(program, args=FLAGS).diagnostics:
        print(f"{program}:{diagnostic.location.line}: {diagnostic.spelling}")
    for number, line in enumerate(open(program), 1):
        code = line.split("//")[0]
        if code.startswith("#"):
            continue
        for match in POINTER.finditer(code):
            if not any(space in match.group(1).split() for space in SPACES):
                print(f"{program}:{number}: a pointer without an address space: {match.group(0).strip()}")
