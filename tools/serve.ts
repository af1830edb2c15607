/**
 * A static file server for localhost: what the browser tests and `npm run page` load pages from. Run by itself it serves the
 * folder it stands in: `node .build/tools/serve.js [path of the page] [port]`.
 */
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { extname, join, normalize } from 'node:path';
import { text } from 'node:stream/consumers';
import { fileURLToPath, pathToFileURL } from 'node:url';

export interface ServeOptions {
  /** Sends the headers that give a page shared memory, and with it threads. */
  readonly isolated: boolean;
  /** Pages that are no files, by path. */
  readonly pages?: Readonly<Record<string, string>>;
  /** Gets what pages post. */
  readonly onPost?: (body: string) => void;
  /** 0, the default, takes any free port. */
  readonly port?: number;
}

export interface Served {
  /** `http://127.0.0.1:port`, without a slash at the end. */
  readonly origin: string;
  close(): Promise<void>;
}

const TYPES: Readonly<Record<string, string>> = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.json': 'application/json',
  '.map': 'application/json',
  '.svg': 'image/svg+xml',
};

const ISOLATION = { 'Cross-Origin-Opener-Policy': 'same-origin', 'Cross-Origin-Embedder-Policy': 'require-corp' };

/** Serves the files below `folder` to this machine alone. */
export async function serve(folder: string, { isolated, pages = {}, onPost, port = 0 }: ServeOptions): Promise<Served> {
  const server = createServer(async (request, response) => {
    const path = decodeURIComponent(new URL(request.url ?? '/', 'http://localhost').pathname);
    const headers = { 'Cache-Control': 'no-store', ...(isolated && ISOLATION) };
    const send = (type: string, body: string | Buffer): void => {
      response.writeHead(200, { ...headers, 'Content-Type': type }).end(body);
    };
    try {
      if (request.method === 'POST' && onPost !== undefined) {
        onPost(await text(request));
        send(TYPES['.json'], '{}');
      } else if (Object.hasOwn(pages, path)) send(TYPES['.html'], pages[path]);
      // `normalize` of an absolute path leaves no `..` that would lead out of the folder.
      else send(TYPES[extname(path)] ?? 'application/octet-stream', await readFile(join(folder, normalize(path))));
    } catch {
      response.writeHead(404, headers).end(`no file ${path}`);
    }
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject).listen(port, '127.0.0.1', resolve);
  });
  return {
    origin: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const [page = 'examples/browser/index.html', port = '8080'] = process.argv.slice(2);
  const root = fileURLToPath(new URL(import.meta.url.includes('/.build/') ? '../..' : '..', import.meta.url));
  const { origin } = await serve(root, { isolated: true, port: Number(port) });
  console.log(`${origin}/${page}\nCtrl-C ends it.`);
}
