// What netron's own reader makes of a file, as JSON: node other_compilers_netron.mjs PACKAGE MODEL
import * as fs from 'node:fs';
import * as path from 'node:path';
import { pathToFileURL } from 'node:url';

const [folder, file] = process.argv.slice(2);
const load = (id) => import(pathToFileURL(path.join(folder, `${id}.js`)));
const { BinaryStream } = await load('base');
const { ModelFactoryService } = await load('view');
const host = { require: load, environment: () => null };
const model = await new ModelFactoryService(host).open({
    identifier: path.basename(file),
    stream: new BinaryStream(new Uint8Array(fs.readFileSync(file))),
    entries: new Map(),
    require: load,
    asset: async (name) => fs.readFileSync(path.join(folder, name), 'utf-8'),
    error: (error) => { throw error; },
});
const nodes = model.modules.flatMap((graph) => graph.nodes);
const values = nodes.flatMap((node) => [...node.inputs, ...node.outputs]).flatMap((end) => end.value);
const graphs = model.modules.map((graph) => [graph.name, graph.nodes.length]);
console.log(JSON.stringify({ graphs, types: values.map((value) => value.type.dataType) }));
