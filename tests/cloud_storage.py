"""Google Cloud Storage as far as this package needs it, in memory: its JSON interface, with what conditions promise.

`Store` holds objects and the history of their changes, so that a test can ask what a process that died after any of
these has left behind. `Server` shows it to tensorstore, gcsfs and google-cloud-storage by HTTP:

    TENSORSTORE_GCS_HTTP_URL=http://localhost:9023 STORAGE_EMULATOR_HOST=http://localhost:9023 \\
        GOOGLE_AUTH_TOKEN_FOR_TESTING=x GOOGLE_CLOUD_PROJECT=x COMMAND…

while `python tests/cloud_storage.py 9023` runs. `filesystem` makes a file system of fsspec, without HTTP.
"""

import base64
import dataclasses
import datetime
import email
import hashlib
import http.server
import io
import itertools
import json
import re
import sys
import threading
import urllib.parse

import fsspec


@dataclasses.dataclass(frozen=True)
class Object:
    """One content of an object."""

    content: bytes
    generation: int
    time: datetime.datetime

    @property
    def md5(self) -> str:
        return base64.b64encode(hashlib.md5(self.content).digest()).decode()


class Refused(Exception):
    """A condition on the generation of an object does not hold."""


class Store:
    """Objects by their names, BUCKET/PATH, and all changes to them: (name, object; None where it was deleted)."""

    def __init__(self):
        self.objects: dict[str, Object] = {}
        self.changes: list[tuple[str, Object | None]] = []
        self.is_closed = False  # the server then refuses all requests
        self._numbers, self._lock = itertools.count(1), threading.Lock()

    def write(self, name: str, content: bytes, generation: str | None = None) -> Object:
        """Writes an object; with a generation, only if the present one has that, or if there is none for '0'."""
        with self._lock:
            now = self.objects.get(name)
            if generation is not None and str(now.generation if now else 0) != generation:
                raise Refused
            made = Object(bytes(content), next(self._numbers), datetime.datetime.now(datetime.UTC))
            self.objects[name] = made
            self.changes.append((name, made))
            return made

    def delete(self, name: str) -> None:
        with self._lock:
            self.changes.append((name, None))
            del self.objects[name]

    def rewind(self, changes: list[tuple[str, Object | None]]) -> None:
        """Leaves what the first changes of a history have made; a new history goes on from there."""
        with self._lock:
            self.changes, found = list(changes), dict(changes)
            self.objects = {name: made for name, made in found.items() if made}


def filesystem(store: Store) -> type[fsspec.AbstractFileSystem]:
    """A class for fsspec's registry which shows what gcsfs would show; `requests` are the ranges that were read."""

    class Bucket(fsspec.AbstractFileSystem):
        protocol, cachable, requests = ('gs', 'gcs'), False, []

        def ls(self, path, detail=True, **kwargs):
            path = self._strip_protocol(path)
            found = {}
            for name in list(store.objects):
                if name.startswith(f'{path}/'):
                    first, slash, _ = name[len(path) + 1 :].partition('/')
                    entry = f'{path}/{first}'
                    found[entry] = {'name': entry, 'size': 0, 'type': 'directory'} if slash else describe(entry)
            if not found:
                found = {path: describe(path)}
            return list(found.values()) if detail else list(found)

        def info(self, path, **kwargs):
            path = self._strip_protocol(path)
            if path not in store.objects and any(name.startswith(f'{path}/') for name in list(store.objects)):
                return {'name': path, 'size': 0, 'type': 'directory'}
            return describe(path)

        def cat_file(self, path, *, start=None, end=None):  # s3fs takes them by name only
            path = self._strip_protocol(path)
            self.requests.append((path, start, end))
            describe(path)
            return store.objects[path].content[start:end]

        def cat_ranges(self, paths, starts, ends, *, on_error):
            return [self.cat_file(path, start=start, end=end) for path, start, end in zip(paths, starts, ends)]

        def pipe_file(self, path, value, mode='overwrite', **kwargs):
            try:
                store.write(self._strip_protocol(path), value, '0' if mode == 'create' else None)
            except Refused:
                raise FileExistsError(path) from None

        def _open(self, path, mode='rb', **kwargs):
            return io.BytesIO(self.cat_file(path)) if mode == 'rb' else _Written(self, path)

        def put_file(self, lpath, rpath, callback=None, mode='overwrite', **kwargs):
            with open(lpath, 'rb') as file:
                self.pipe_file(rpath, file.read(), mode)

        def get_file(self, rpath, lpath, **kwargs):
            with open(lpath, 'wb') as file:
                file.write(self.cat_file(rpath))

        def cp_file(self, path1, path2, **kwargs):
            self.pipe_file(path2, self.cat_file(path1))

        def rm_file(self, path):
            describe(self._strip_protocol(path))
            store.delete(self._strip_protocol(path))

        def rm(self, path, recursive=False, maxdepth=None):
            for each in [path] if isinstance(path, str) else path:
                for name in self.find(each) if recursive else [self._strip_protocol(each)]:
                    self.rm_file(name)

        def mkdir(self, path, create_parents=True, **kwargs):
            pass

        makedirs = rmdir = mkdir

    def describe(path: str) -> dict:
        if path not in store.objects:
            raise FileNotFoundError(path)
        found = store.objects[path]
        return {
            'name': path, 'size': len(found.content), 'type': 'file', 'generation': str(found.generation),
            'mtime': found.time, 'md5Hash': found.md5,
        }  # fmt: skip

    return Bucket


class _Written(io.BytesIO):
    """An object that is written when it is closed."""

    def __init__(self, bucket, path):
        super().__init__()
        self._bucket, self._path = bucket, path

    def close(self):
        if not self.closed:
            self._bucket.pipe_file(self._path, self.getvalue())
        super().close()


class Server(http.server.ThreadingHTTPServer):
    """Serves a store on a port of this machine in a thread of its own."""

    daemon_threads = True

    def __init__(self, store: Store, port: int = 0):
        super().__init__(('127.0.0.1', port), _Handler)
        self.store, self.uploads = store, {}
        self.url = f'http://127.0.0.1:{self.server_port}'
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm, wbufsize = 'HTTP/1.1', True, -1  # an answer is sent at once

    def log_message(self, format, *args):
        pass

    def _serve(self):
        url = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        if self.server.store.is_closed:
            return self._answer(403, {'error': {'code': 403, 'message': 'denied'}})
        route = re.sub(r'^/(upload|download)?/?storage/v1', '', url.path)
        for pattern, serve in self.ROUTES[self.command]:
            if match := re.fullmatch(pattern, route):
                return serve(self, body, *map(urllib.parse.unquote, match.groups()))
        return self._answer(404, {'error': {'code': 404, 'message': f'{self.command} {self.path}'}})

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _serve

    def _answer(self, status, content=b'', **headers):
        if isinstance(content, dict):
            content = json.dumps(content).encode()
            headers['Content-Type'] = 'application/json'
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace('_', '-'), str(value))
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _missing(self):
        self._answer(404, {'error': {'code': 404, 'message': 'Not Found'}})

    def _bucket(self, body, bucket):
        self._answer(200, {'kind': 'storage#bucket', 'id': bucket, 'name': bucket, 'location': 'EU'})

    def _layout(self, body, bucket):
        self._answer(200, {'bucket': bucket, 'location': 'EU', 'locationType': 'multi-region'})

    def _list(self, body, bucket):
        prefix, delimiter = self.query.get('prefix', ''), self.query.get('delimiter', '')
        start, end = self.query.get('startOffset', ''), self.query.get('endOffset', '')
        items, prefixes = [], set()
        for path in sorted(self.server.store.objects):
            of, _, name = path.partition('/')
            if of != bucket or not name.startswith(prefix) or name < start or (end and name >= end):
                continue
            inside, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ('', '', '')
            if found:
                prefixes.add(f'{prefix}{inside}{delimiter}')
            else:
                items.append(self._describe(bucket, name))
        self._answer(200, {'kind': 'storage#objects', 'items': items, 'prefixes': sorted(prefixes)})

    def _describe(self, bucket, name):
        found = self.server.store.objects[f'{bucket}/{name}']
        stamp = found.time.strftime('%Y-%m-%dT%H:%M:%S.%fZ')
        return {
            'kind': 'storage#object', 'bucket': bucket, 'name': name, 'id': f'{bucket}/{name}/{found.generation}',
            'size': str(len(found.content)), 'generation': str(found.generation), 'metageneration': '1',
            'md5Hash': found.md5, 'timeCreated': stamp, 'updated': stamp, 'contentType': 'application/octet-stream',
        }  # fmt: skip

    def _get(self, body, bucket, name):
        found = self.server.store.objects.get(f'{bucket}/{name}')
        if found is None:
            return self._missing()
        if self.query.get('ifGenerationNotMatch') == str(found.generation):
            return self._answer(304)
        if self.query.get('ifGenerationMatch', str(found.generation)) != str(found.generation):
            return self._answer(412, {'error': {'code': 412, 'message': 'conditionNotMet'}})
        if self.query.get('alt') != 'media':
            return self._answer(200, self._describe(bucket, name))
        headers = {'x_goog_generation': found.generation, 'X_Goog_Hash': f'md5={found.md5}'}
        if not (given := re.fullmatch(r'bytes=(\d*)-(\d*)', self.headers.get('Range', ''))):
            return self._answer(200, found.content, **headers)
        size = len(found.content)
        first, last = int(given[1] or size - int(given[2])), int(given[2] or size - 1) if given[1] else size - 1
        if first >= size:
            return self._answer(416)
        last = min(last, size - 1)
        headers['Content_Range'] = f'bytes {first}-{last}/{size}'
        return self._answer(206, found.content[first : last + 1], **headers)

    def _insert(self, body, bucket):
        kind, name = self.query.get('uploadType'), self.query.get('name')
        if kind == 'multipart':
            header = f'Content-Type: {self.headers["Content-Type"]}\r\n\r\n'.encode()
            about, content = email.message_from_bytes(header + body).get_payload()
            name = json.loads(about.get_payload())['name']
            body = _exact_part(body, content)
        if kind == 'resumable':
            name = name or json.loads(body)['name']
            number = str(len(self.server.uploads) + 1)
            self.server.uploads[number] = bucket, name, self.query.get('ifGenerationMatch'), bytearray()
            return self._answer(200, Location=f'{self.server.url}/upload/storage/v1/b/{bucket}/o?upload_id={number}')
        if upload := self.server.uploads.get(self.query.get('upload_id', '')):
            return self._more(body, *upload)
        return self._store(bucket, name, body, self.query.get('ifGenerationMatch'))

    def _more(self, body, bucket, name, condition, content):
        content += body
        given = re.fullmatch(r'bytes (?:\d+-\d+|\*)/(\d+|\*)', self.headers.get('Content-Range', ''))
        if given and (given[1] == '*' or len(content) < int(given[1])):
            return self._answer(308, Range=f'bytes=0-{len(content) - 1}')
        return self._store(bucket, name, content, condition)

    def _store(self, bucket, name, content, condition):
        try:
            self.server.store.write(f'{bucket}/{name}', content, condition)
        except Refused:
            return self._answer(412, {'error': {'code': 412, 'message': 'conditionNotMet'}})
        return self._answer(200, self._describe(bucket, name))

    def _rewrite(self, body, bucket, name, other_bucket, other):
        if f'{bucket}/{name}' not in self.server.store.objects:
            return self._missing()
        self.server.store.write(f'{other_bucket}/{other}', self.server.store.objects[f'{bucket}/{name}'].content)
        return self._answer(200, {'kind': 'storage#rewriteResponse', 'done': True, 'resource': {}})

    def _delete(self, body, bucket, name):
        condition, found = self.query.get('ifGenerationMatch'), self.server.store.objects.get(f'{bucket}/{name}')
        if found is None:
            return self._missing()
        if condition not in (None, str(found.generation)):
            return self._answer(412, {'error': {'code': 412, 'message': 'conditionNotMet'}})
        self.server.store.delete(f'{bucket}/{name}')
        return self._answer(204)

    def _batch(self, body):
        parts = []
        for part in re.findall(rb'DELETE /storage/v1/b/([^/]+)/o/([^? ]+)', body):
            path = '/'.join(urllib.parse.unquote(piece.decode()) for piece in part)
            status = '204 No Content' if path in self.server.store.objects else '404 Not Found'
            if path in self.server.store.objects:
                self.server.store.delete(path)
            parts.append(f'--x\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {status}\r\n\r\n\r\n')
        self._answer(200, (''.join(parts) + '--x--').encode(), Content_Type='multipart/mixed; boundary=x')

    ROUTES = {  # noqa: RUF012
        'GET': [
            (r'/b/([^/]+)/storageLayout', _layout), (r'/b/([^/]+)/o/?', _list), (r'/b/([^/]+)/o/([^/]+)', _get),
            (r'/b/([^/]+)', _bucket),
        ],
        'POST': [
            (r'/b/([^/]+)/o', _insert), (r'/b/([^/]+)/o/([^/]+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)', _rewrite),
            (r'/batch/storage/v1', _batch),
        ],
        'PUT': [(r'/b/([^/]+)/o', _insert)],
        'DELETE': [(r'/b/([^/]+)/o/([^/]+)', _delete)],
        'PATCH': [],
    }  # fmt: skip


def _exact_part(body, part):
    """The second part of a body in two parts as it was sent; the parser of mails changes ends of lines."""
    line = body[: body.index(b'\n') + 1]
    newline = line[len(line.rstrip()) :]
    content = body.split(line.rstrip())[2].split(newline * 2, maxsplit=1)[1]
    return content.removesuffix(newline)


if __name__ == '__main__':
    served = Server(Store(), int(sys.argv[1]))
    print(served.url, flush=True)
    threading.Event().wait()
