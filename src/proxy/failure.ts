import { SECRET_UNAVAILABLE_TEXT } from '../errors.ts'

/** The body of an error answer with its type. */
export interface ErrorBody {
  readonly contentType: string
  readonly body: string
}

type Format = 'json' | 'html' | 'xml' | 'plain'

/** What each status says when nothing more fitting is known. */
const MESSAGES: Readonly<Record<number, string>> = {
  400: 'Bad request',
  401: 'Unauthorized',
  402: 'Payment required',
  403: 'Forbidden',
  404: 'Not found',
  405: 'Method not allowed',
  406: 'Not acceptable',
  407: 'Proxy authentication required',
  408: 'Request timeout',
  409: 'Conflict',
  410: 'Gone',
  411: 'Length required',
  412: 'Precondition failed',
  413: 'Payload too large',
  414: 'URI too long',
  415: 'Unsupported media type',
  416: 'Range not satisfiable',
  417: 'Expectation failed',
  418: "I'm a teapot",
  421: 'Misdirected request',
  422: 'Unprocessable entity',
  423: 'Locked',
  424: 'Failed dependency',
  425: 'Too early',
  426: 'Upgrade required',
  428: 'Precondition required',
  429: 'Too many requests',
  431: 'Request header fields too large',
  451: 'Unavailable for legal reasons',
  494: 'Request header or cookie too large',
  500: 'An unexpected error occurred',
  501: 'Not implemented',
  502: 'An invalid response was received from the upstream server',
  503: 'The upstream server is currently unavailable',
  504: 'The upstream server is timing out',
  505: 'HTTP version not supported',
  506: 'Variant also negotiates',
  507: 'Insufficient storage',
  508: 'Loop detected',
  510: 'Not extended',
  511: 'Network authentication required'
}

/** The message of a status that was given none. */
export function defaultMessage(status: number): string {
  return MESSAGES[status] ?? `The upstream server responded with ${status}`
}

const MARKUP: Readonly<Record<string, string>> = { '&': '&amp;', '<': '&lt;', '>': '&gt;' }
const escapeMarkup = (text: string): string => text.replace(/[&<>]/g, char => MARKUP[char]!)

function render(format: Format, message: string, requestId: string): ErrorBody {
  switch (format) {
    case 'json':
      return {
        contentType: 'application/json; charset=utf-8',
        body: `{\n  "message":${JSON.stringify(message)},\n  "request_id":"${requestId}"\n}`
      }
    case 'plain':
      return {
        contentType: 'text/plain; charset=utf-8',
        body: `${message}\nrequest_id: ${requestId}\n`
      }
    case 'html':
      return {
        contentType: 'text/html; charset=utf-8',
        body:
          '<!doctype html>\n<html>\n  <head>\n    <meta charset="utf-8">\n    <title>Error</title>\n  </head>\n' +
          `  <body>\n    <h1>Error</h1>\n    <p>${escapeMarkup(message)}.</p>\n    <p>request_id: ${requestId}</p>\n  </body>\n</html>\n`
      }
    case 'xml':
      return {
        contentType: 'application/xml; charset=utf-8',
        body: `<?xml version="1.0" encoding="UTF-8"?>\n<error>\n  <message>${escapeMarkup(message)}</message>\n  <requestid>${requestId}</requestid>\n</error>\n`
      }
  }
}

const FORMATS: Readonly<Record<string, Format>> = {
  'application/json': 'json',
  'text/plain': 'plain',
  'text/*': 'plain',
  'text/html': 'html',
  'application/xml': 'xml',
  '*/*': 'json',
  'application/*': 'json'
}

/** The format a media type list prefers by quality (RFC 9110 §12.5.1); undefined when it names none of ours. */
function negotiate(accept: string): Format | undefined {
  let best: Format | undefined
  let bestQuality = 0
  for (const range of accept.split(',')) {
    const [type = '', ...parameters] = range.split(';').map(part => part.trim().toLowerCase())
    const format = FORMATS[type]
    if (format === undefined) continue
    const q = parameters.find(parameter => parameter.startsWith('q='))
    const quality = q === undefined ? 1 : Number(q.slice(2))
    if (quality > bestQuality) {
      best = format
      bestQuality = quality
    }
  }
  return best
}

/** The error body of the gateway's checks and its plugins, in the type `Accept` prefers, else JSON. */
export function errorBody(
  _status: number,
  message: string,
  accept: string | undefined,
  requestId: string
): ErrorBody {
  return render(
    (accept === undefined ? undefined : negotiate(accept)) ?? 'json',
    message,
    requestId
  )
}

/**
 * The error body of the HTTP layer: without `Accept` it follows the request's own content type, and
 * is plain text when that names none of ours.
 */
export function httpLayerBody(
  _status: number,
  message: string,
  accept: string | undefined,
  contentType: string | undefined,
  requestId: string
): ErrorBody {
  const format =
    accept === undefined
      ? ((contentType === undefined ? undefined : negotiate(contentType)) ?? 'plain')
      : (negotiate(accept) ?? 'json')
  return render(format, message, requestId)
}

/** What this machine or process has no more of: descriptors, buffers, memory. */
const OWN_LIMITS = ['EMFILE', 'ENFILE', 'ENOBUFS', 'ENOMEM']

/** Whether a system call failed for a limit of our own, which says nothing of whom it was to reach. */
export function isOwnLimit(code: string | undefined): boolean {
  return code !== undefined && OWN_LIMITS.includes(code)
}

/** Status by the code of what went wrong towards an upstream; everything else is 502. */
const STATUSES: Readonly<Record<string, number>> = {
  ...Object.fromEntries(OWN_LIMITS.map(code => [code, 503])),
  UND_ERR_CONNECT_TIMEOUT: 504,
  UND_ERR_HEADERS_TIMEOUT: 504,
  UND_ERR_BODY_TIMEOUT: 504,
  POSTERN_WRITE_TIMEOUT: 504,
  ETIMEDOUT: 504,
  POSTERN_DNS_FAILED: 503,
  POSTERN_UPSTREAM_BUSY: 503,
  POSTERN_UPSTREAM_QUEUE_TIMEOUT: 503,
  POSTERN_SECRET_UNAVAILABLE: 503,
  POSTERN_BODY_TIMEOUT: 408,
  POSTERN_BODY_TOO_LARGE: 413,
  POSTERN_BODY_ABORTED: 400,
  POSTERN_TRAILERS_TOO_MANY: 400
}

/** What the client is told of failures that are not the upstream's. */
const TEXTS: Readonly<Record<string, string>> = {
  POSTERN_DNS_FAILED: 'name resolution failed',
  POSTERN_SECRET_UNAVAILABLE: SECRET_UNAVAILABLE_TEXT
}

/** What the client is told when the upstream gave no answer. */
export function upstreamFailure(error: Error & { readonly code?: string }): {
  readonly status: number
  readonly message: string
} {
  const status = STATUSES[error.code ?? ''] ?? 502
  return { status, message: TEXTS[error.code ?? ''] ?? defaultMessage(status) }
}

/** Failures that say nothing of the upstream: the request's, the client's, or our own limits'. */
const BLAMELESS = new Set(['UND_ERR_INVALID_ARG', 'UND_ERR_REQ_CONTENT_LENGTH_MISMATCH'])

/** What a failed attempt counts as for the health of its target; undefined counts as nothing. */
export function failureKind(
  error: Error & { readonly code?: string }
): 'tcp' | 'timeout' | undefined {
  const { status } = upstreamFailure(error)
  if (status === 504) return 'timeout'
  return status === 502 && !BLAMELESS.has(error.code ?? '') ? 'tcp' : undefined
}

const GRPC_STATUSES: Readonly<Record<number, number>> = {
  200: 0,
  400: 3,
  401: 16,
  403: 7,
  404: 5,
  409: 6,
  429: 8,
  499: 1,
  500: 13,
  501: 12,
  503: 14,
  504: 4
}

/** The `grpc-status` that stands for an HTTP status. */
export function grpcStatus(status: number): number {
  return GRPC_STATUSES[status] ?? (status >= 500 ? 13 : status >= 400 ? 3 : 2)
}
