#!/bin/sh
# Takes from Python's image what only builds need, and compiles what is left: where containers run, nothing can be
# written beside a module, so it is compiled here or at every start.
set -eu
folders=$(python -c 'import site, sysconfig; print(sysconfig.get_path("stdlib"), *site.getsitepackages())')
for folder in $folders; do
    [ -d "$folder" ] || continue
    for name in ensurepip idlelib lib2to3 pydoc_data tkinter turtledemo test \
        pip 'pip-*' setuptools 'setuptools-*' pkg_resources wheel 'wheel-*' _distutils_hack distutils-precedence.pth; do
        find "$folder" -maxdepth 1 -name "$name" -exec rm -r {} +
    done
done
rm -rf /usr/share/python-wheels /usr/local/bin/pip* /usr/local/bin/idle* /usr/local/bin/pydoc* /usr/local/bin/2to3* \
    /usr/share/doc /usr/share/man /usr/share/locale /var/cache/apt /var/lib/apt/lists
# Modules that do not compile are not imported either.
python -m compileall -q "${folders%% *}" || :
