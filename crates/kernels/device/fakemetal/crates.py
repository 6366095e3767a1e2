#!/usr/bin/env python3
"""crates.py FOLDER: copies of the crates that speak to Apple's runtime, changed so that they build and run on Linux.

Prints the setting of cargo that has them in the place of the registry's: same versions and dependencies, so the lock file
holds for both. The changes: objc2 and what is built on it call plain functions, as they do for GNUstep's runtime; no
framework is linked; candle-core's capture() does without a method of Apple's alone.
"""
import json, os, re, shutil, subprocess, sys

CHANGES = {
    "objc2": [
        ("Cargo.toml", r'^default = \["std"\]', 'default = ["std", "gnustep-2-1"]'),
        ("Cargo.toml", r"^gnustep-1-7 = \[.*?\]", "gnustep-1-7 = []"),
    ],
    "block2": [("Cargo.toml", r"^alloc = \[\]", 'alloc = ["gnustep-2-1"]')],
    "objc2-foundation": [("Cargo.toml", r"^default = \[", 'default = ["gnustep-2-1",')],
    "objc2-metal": [("src/generated/mod.rs", r'#\[link\(name = "Metal", kind = "framework"\)\]', "")],
    "candle-core": [("src/metal_backend/device.rs", r"NSURL::from_file_path\(path\)", "Some(NSURL::new())")],
}


def main(folder):
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--all-features"]
    packages = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["packages"]
    copies = []
    for package in packages:
        if package["name"] not in CHANGES or not package["source"]:
            continue
        copy = os.path.join(folder, f"{package['name']}-{package['version']}")
        copies.append(copy)
        if os.path.exists(copy):
            continue
        fresh = f"{copy}.{os.getpid()}"
        shutil.copytree(os.path.dirname(package["manifest_path"]), fresh)
        for file, old, new in CHANGES[package["name"]]:
            path = os.path.join(fresh, file)
            with open(path) as opened:
                text, count = re.subn(old, new, opened.read(), flags=re.M | re.S)
            if not count:
                raise SystemExit(f"{package['name']} {package['version']}: {file} has no {old}; change {__file__}")
            with open(path, "w") as opened:
                opened.write(text)
        os.rename(fresh, copy)
    print(f"paths={json.dumps(copies)}")


main(sys.argv[1])
