// Notes each request that it sees.
const fs = require('fs')
const http = require('http')

const log = fs.openSync(process.env.REQUESTS, 'a')

const server = http.createServer((request, response) => {
  fs.writeSync(log, `${request.socket.port} ${request.method} ${request.url}\n`)
  request.resume()
  request.on('end', () => {
    response.setHeader('Content-Length', 0)
    response.end()
  })
})
server.on('connection', (socket) => {
  socket.port = socket.remotePort // which is not known any more once it is closed
})
server.listen(Number(process.argv[2]), '0.0.0.0')
