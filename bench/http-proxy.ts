import proxy from '@fastify/http-proxy'
import { fastify } from 'fastify'

// The peer of the benchmark: @fastify/http-proxy as its README shows it, nothing tuned.
const [port, upstream] = process.argv.slice(2)
const app = fastify({ logger: false })
await app.register(proxy, { upstream: upstream! })
await app.listen({ host: '127.0.0.1', port: Number(port) })
