#!/usr/bin/env python3
# usage: embed_sql.py INPUT OUTPUT SYMBOL HEADER
# Writes a C file that defines SYMBOL as the text of INPUT.
import sys

source, target, symbol, header = sys.argv[1:]
escapes = {'\\': '\\\\', '"': '\\"', '\t': '\\t'}
with open(source, encoding='ascii') as text, open(target, 'w', encoding='ascii') as out:
	out.write('#include "%s"\n\nconst char %s[] =' % (header, symbol))
	for line in text.read().splitlines():
		out.write('\n\t"%s\\n"' % ''.join(escapes.get(c, c) for c in line))
	out.write(';\n')
